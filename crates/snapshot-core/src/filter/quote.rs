//! Go's string literals (strconv.Unquote), with `/` and `|` as further quotes; must not scan.

/// The bytes that a literal stands for; `\xNN` and `\NNN` are bytes, not characters.
///
/// # Errors
/// What is wrong with it.
pub(super) fn unquote(literal: &str) -> Result<Vec<u8>, &'static str> {
    let mut characters = literal.chars();
    let quote = characters.next().filter(|c| matches!(c, '"' | '/' | '|'));
    let closed = characters.next_back();
    let Some(quote) = quote.filter(|_| closed == quote) else {
        return Err("no quoted text");
    };
    let mut rest = characters.as_str();
    let mut bytes = Vec::with_capacity(rest.len());
    while let Some(c) = rest.chars().next() {
        rest = &rest[c.len_utf8()..];
        match c {
            '\\' => rest = unescape(rest, quote, &mut bytes)?,
            '\n' => return Err("a line break inside quotes"),
            _ if c == quote => return Err("a quote inside quotes"),
            _ => push(&mut bytes, c),
        }
    }
    Ok(bytes)
}

/// Takes what stands behind a backslash and gives what is left.
fn unescape<'a>(rest: &'a str, quote: char, bytes: &mut Vec<u8>) -> Result<&'a str, &'static str> {
    let c = rest.chars().next().ok_or("a backslash at the end")?;
    let behind = &rest[c.len_utf8()..];
    let byte = match c {
        'a' => 0x07,
        'b' => 0x08,
        'f' => 0x0c,
        'n' => b'\n',
        'r' => b'\r',
        't' => b'\t',
        'v' => 0x0b,
        '\\' => b'\\',
        '0'..='7' => return byte_of(rest, 3, 8, bytes),
        'x' => return byte_of(behind, 2, 16, bytes),
        'u' => return character_of(behind, 4, bytes),
        'U' => return character_of(behind, 8, bytes),
        _ if c == quote => {
            push(bytes, c);
            return Ok(behind);
        }
        _ => return Err("an escape that Go's strings do not have"),
    };
    bytes.push(byte);
    Ok(behind)
}

fn byte_of<'a>(
    text: &'a str,
    digits: usize,
    radix: u32,
    bytes: &mut Vec<u8>,
) -> Result<&'a str, &'static str> {
    let (value, rest) = number(text, digits, radix)?;
    bytes.push(u8::try_from(value).or(Err("an octal escape above 255"))?);
    Ok(rest)
}

fn character_of<'a>(
    text: &'a str,
    digits: usize,
    bytes: &mut Vec<u8>,
) -> Result<&'a str, &'static str> {
    let (value, rest) = number(text, digits, 16)?;
    if value > u32::from(char::MAX) {
        return Err("a character above U+10FFFF");
    }
    // Half a surrogate pair becomes the replacement character, as Go encodes it.
    push(
        bytes,
        char::from_u32(value).unwrap_or(char::REPLACEMENT_CHARACTER),
    );
    Ok(rest)
}

fn number(text: &str, digits: usize, radix: u32) -> Result<(u32, &str), &'static str> {
    let wrong = "a numeric escape without its digits";
    let (number, rest) = text.split_at_checked(digits).ok_or(wrong)?;
    if !number.chars().all(|c| c.is_digit(radix)) {
        return Err(wrong);
    }
    Ok((u32::from_str_radix(number, radix).or(Err(wrong))?, rest))
}

fn push(bytes: &mut Vec<u8>, c: char) {
    bytes.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn literals_stand_for_what_go_makes_of_them() {
        let check = |literal: &str, expected: Option<&[u8]>| {
            assert_eq!(unquote(literal).ok().as_deref(), expected, "{literal}");
        };
        check(r#""""#, Some(b""));
        check(r#""a b""#, Some(b"a b"));
        check("/[abc]+/", Some(b"[abc]+"));
        check(r"|a\|b|", Some(b"a|b"));
        check(r#""\a\b\f\n\r\t\v\\""#, Some(b"\x07\x08\x0c\n\r\t\x0b\\"));
        check(
            r#""\x41\102\u00e9\U0001F600""#,
            Some("AB\u{e9}\u{1F600}".as_bytes()),
        );
        check(r#""\xff\377""#, Some(b"\xff\xff"));
        check(r#""\ud800""#, Some("\u{fffd}".as_bytes()));
        check(r#""\U0010FFFF""#, Some("\u{10ffff}".as_bytes()));
        for wrong in [
            "",
            "\"",
            "a",
            "'a'",
            "\"a",
            "a\"",
            "\"a/",
            "\"a\"b\"",
            "\"\n\"",
            r#""\""#,
            r#""\q""#,
            r#""\/""#,
            r#"/\"/"#,
            r#""\x4""#,
            r#""\x4g""#,
            r#""\x+1""#,
            r#""\40""#,
            r#""\400""#,
            r#""\48""#,
            r#""\u00g0""#,
            r#""\U00110000""#,
            "\"\\x\u{e9}\"",
        ] {
            check(wrong, None);
        }
    }

    proptest! {
        #[test]
        fn any_text_survives_quoting(text in "\\PC*") {
            let quoted = format!("\"{}\"", text.replace('\\', r"\\").replace('"', "\\\""));
            prop_assert_eq!(unquote(&quoted), Ok(text.into_bytes()));
        }

        #[test]
        fn no_literal_is_too_odd(text in "[\"/|]?[\\\\xuU0-9a-f\"/|\u{e9}]*[\"/|]?") {
            let _either = unquote(&text);
        }
    }
}
