//! The known word that an unknown one was probably meant to be.

/// Of `known`, the one that is nearest to `word`, if any is near enough to be meant.
#[must_use]
pub fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // A third of the letters wrong is a slip; more is another word.
    let distance_max = word.chars().count().max(4) / 3 + 1;
    known
        .into_iter()
        .map(|candidate| (strsim::damerau_levenshtein(word, candidate), candidate))
        .filter(|(distance, _)| *distance <= distance_max)
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, candidate)| candidate)
}

/// For a message: `, the nearest known one is "x"`, or which ones are known.
#[must_use]
pub fn suggestion(word: &str, known: &[&str]) -> String {
    match nearest(word, known.iter().copied()) {
        Some(nearest) => format!("the nearest known one is {nearest:?}"),
        None if known.is_empty() => "none is known here".to_owned(),
        None => format!("known are {}", known.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slips_are_recognised_and_other_words_are_not() {
        let known = ["level", "format", "address", "requests_max"];
        let check = |word, expected| assert_eq!(nearest(word, known), expected, "{word}");
        check("levle", Some("level"));
        check("fromat", Some("format"));
        check("adress", Some("address"));
        check("request_max", Some("requests_max"));
        check("zebra", None);
        check("", None);
    }

    #[test]
    fn suggestion_names_the_nearest_or_all() {
        let known = ["level", "format"];
        assert_eq!(
            suggestion("lvl", &known),
            "the nearest known one is \"level\""
        );
        assert_eq!(suggestion("zebra", &known), "known are level, format");
        assert_eq!(suggestion("zebra", &[]), "none is known here");
    }
}
