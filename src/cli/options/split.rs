//! `a,b=c` and back, with the escapes of libfuse: `\,` for a comma, `\\` for a backslash, `\ooo` for an octal byte.

/// Splits one `-o` value into options, unescaped. Empty ones are left out.
pub fn split(text: &str) -> Vec<String> {
    let mut options = Vec::new();
    let mut current = String::new();
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match c {
            ',' => options.push(std::mem::take(&mut current)),
            '\\' => match octal(chars.as_str()) {
                Some(byte) => {
                    current.push(byte);
                    chars.nth(2);
                }
                // A backslash at the very end stands for itself.
                None => current.push(chars.next().unwrap_or('\\')),
            },
            c => current.push(c),
        }
    }
    options.push(current);
    options.retain(|option| !option.is_empty());
    options
}

/// The one `-o` value that [`split`] takes apart into these options.
pub fn join<'a>(options: impl IntoIterator<Item = &'a str>) -> String {
    let escaped: Vec<String> =
        options.into_iter().map(|option| option.replace('\\', "\\\\").replace(',', "\\,")).collect();
    escaped.join(",")
}

/// Three octal digits that make an ASCII character; others would not be text on their own.
fn octal(text: &str) -> Option<char> {
    let digits = text.get(..3).filter(|digits| digits.bytes().all(|b| (b'0'..=b'7').contains(&b)))?;
    u8::from_str_radix(digits, 8).ok().filter(u8::is_ascii).map(char::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn commas_and_escapes() {
        assert_eq!(split("a,b=c,,d"), ["a", "b=c", "d"]);
        assert_eq!(split(r"on_outage=x a\,b,ro"), ["on_outage=x a,b", "ro"]);
        assert_eq!(split(r"a\040b\\c\"), ["a b\\c\\"]);
        assert!(split("").is_empty());
    }

    proptest! {
        #[test]
        fn never_panics(text in "\\PC{0,60}") {
            let _ = split(&text);
        }

        #[test]
        fn round_trip(options in proptest::collection::vec("\\PC{1,20}", 0..6)) {
            prop_assert_eq!(split(&join(options.iter().map(String::as_str))), options);
        }
    }
}
