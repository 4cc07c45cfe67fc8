//! Words of a command, split and quoted as sh(1) does, without expanding anything.

/// Splits `text` into words; the error says what is wrong with it.
pub fn split(text: &str) -> Result<Vec<String>, String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            ' ' | '\t' | '\n' => words.extend(word.take()),
            '\'' => {
                let inside = word.get_or_insert_default();
                loop {
                    match chars.next().ok_or("has an unclosed '")? {
                        '\'' => break,
                        c => inside.push(c),
                    }
                }
            }
            '"' => {
                let inside = word.get_or_insert_default();
                loop {
                    match chars.next().ok_or("has an unclosed \"")? {
                        '"' => break,
                        '\\' => match chars.next().ok_or("has an unclosed \"")? {
                            c @ ('"' | '\\' | '$' | '`') => inside.push(c),
                            '\n' => {}
                            c => inside.extend(['\\', c]),
                        },
                        c => inside.push(c),
                    }
                }
            }
            '\\' => word.get_or_insert_default().push(chars.next().ok_or("ends with a lone backslash")?),
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    Ok(words)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn quotes_as_in_a_shell() {
        let words = |text: &str| split(text).expect("well quoted");
        assert_eq!(words(r#"/bin/x  a\ b 'c "d' "e'\"f" g"h"i '' "#), ["/bin/x", "a b", "c \"d", "e'\"f", "ghi", ""]);
        assert_eq!(words(r#""a\b\\c""#), ["a\\b\\c"]);
        assert!(words("  ").is_empty());
        for bad in ["'a", "\"a", "a\\", "\"a\\"] {
            assert!(split(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(text in "[a'\"\\\\ $]{0,20}") {
            let _ = split(&text);
        }

        #[test]
        fn quoted_words_come_back(words in proptest::collection::vec("\\PC{0,12}", 0..5)) {
            let text: Vec<String> = words.iter().map(|w| format!("'{}'", w.replace('\'', r"'\''"))).collect();
            prop_assert_eq!(split(&text.join(" ")), Ok(words));
        }
    }
}
