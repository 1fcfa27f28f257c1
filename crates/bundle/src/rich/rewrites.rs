//! Signals that a program gets as other ones, from an annotation. Pure.

use launch::plan::Rewrite;
use launch::signals;

use super::{SIGNALS, annotation};
use crate::{Error, Result};

/// Signals that pid 1 does not get, has itself, or is spared (CONT).
const NOT_PASSED_ON: [i32; 6] = [9, 17, 18, 19, 32, 33];

/// Pairs of an annotation like `TERM:QUIT,HUP:0`.
///
/// # Errors
/// [`Error::Invalid`] with the pair that is none.
pub(super) fn parse(text: &str) -> Result<Vec<Rewrite>> {
    let refuse = |why: String| Error::invalid(annotation(SIGNALS), why);
    let mut all: Vec<Rewrite> = Vec::new();
    for pair in text.split(',') {
        let Some((from, to)) = pair.split_once(':') else {
            let why = format!("{pair:?} is not of the form SIGNAL:SIGNAL, as in TERM:QUIT,HUP:0");
            return Err(refuse(why));
        };
        let number = |word: &str| {
            signals::parse(word).ok_or_else(|| refuse(format!("{word:?} is no signal")))
        };
        let rewrite = Rewrite {
            from: number(from)?,
            to: Some(number(to)?).filter(|number| *number != 0),
        };
        if rewrite.from == 0 || NOT_PASSED_ON.contains(&rewrite.from) {
            return Err(refuse(format!("{from:?} is not passed on to any program")));
        }
        if all.iter().any(|other| other.from == rewrite.from) {
            return Err(refuse(format!("{from:?} is rewritten twice")));
        }
        all.push(rewrite);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn signals_are_rewritten_by_pairs() {
        let pairs = parse("TERM:QUIT,sighup:0,37:RTMIN+4").unwrap();
        let pairs: Vec<_> = pairs.iter().map(|r| (r.from, r.to)).collect();
        assert_eq!(pairs, [(15, Some(3)), (1, None), (37, Some(38))]);
        for (text, why) in [
            (
                "",
                "\"\" is not of the form SIGNAL:SIGNAL, as in TERM:QUIT,HUP:0",
            ),
            (
                "TERM",
                "\"TERM\" is not of the form SIGNAL:SIGNAL, as in TERM:QUIT,HUP:0",
            ),
            ("TERM:", "\"\" is no signal"),
            ("TERM:QIUT", "\"QIUT\" is no signal"),
            ("TERM:QUIT, HUP:0", "\" HUP\" is no signal"),
            ("KILL:TERM", "\"KILL\" is not passed on to any program"),
            ("CHLD:TERM", "\"CHLD\" is not passed on to any program"),
            ("CONT:USR1", "\"CONT\" is not passed on to any program"),
            ("0:TERM", "\"0\" is not passed on to any program"),
            ("TERM:INT,15:HUP", "\"15\" is rewritten twice"),
        ] {
            let message = parse(text).unwrap_err().to_string();
            assert_eq!(message, format!("annotations.{SIGNALS}: {why}"));
        }
    }

    proptest! {
        #[test]
        fn any_text_is_rewrites_or_an_error_of_one_line(
            text in "([A-Z0-9+-]{0,8}[:,]?){0,6}|.{0,40}",
        ) {
            match parse(&text) {
                Ok(all) => prop_assert!(all.iter().all(|r| (1..=64).contains(&r.from))),
                Err(error) => prop_assert!(!error.to_string().contains('\n')),
            }
        }
    }
}
