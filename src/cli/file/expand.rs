//! `${NAME}` and `${NAME:-DEFAULT}` in strings. `$${` is a literal `${`; any other `$` stands for itself.

/// The text with variables put in; the error is a half sentence, to follow the name of the key.
pub(super) fn expand(text: &str, variable: impl Fn(&str) -> Option<String>) -> Result<String, String> {
    let mut expanded = String::new();
    let mut rest = text;
    while let Some(start) = rest.find("${") {
        let (before, after) = (&rest[..start], &rest[start + 2..]);
        if let Some(before) = before.strip_suffix('$') {
            expanded.extend([before, "${"]);
            rest = after;
            continue;
        }
        expanded.push_str(before);
        let end =
            after.find('}').ok_or("has a ${ without its }: write ${NAME}, or $${ for the characters themselves")?;
        let inside = &after[..end];
        let (name, default) = match inside.split_once(":-") {
            Some((name, default)) => (name, Some(default)),
            None => (inside, None),
        };
        if !is_name(name) {
            return Err(format!(
                "names no environment variable in ${{{inside}}}: write ${{NAME}}, or $${{ for the characters themselves"
            ));
        }
        // As in sh(1), a default also stands in for an empty value.
        let value = variable(name).filter(|value| default.is_none() || !value.is_empty());
        match value.as_deref().or(default) {
            Some(value) => expanded.push_str(value),
            None => {
                return Err(format!(
                    "needs the environment variable {name}, which is not set: set it (in a unit with Environment= or \
                     EnvironmentFile=), or write ${{{name}:-DEFAULT}}"
                ));
            }
        }
        rest = &after[end + 1..];
    }
    expanded.push_str(rest);
    Ok(expanded)
}

fn is_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
        && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn with(text: &str) -> Result<String, String> {
        expand(text, |name| match name {
            "A" => Some("x".into()),
            "EMPTY" => Some(String::new()),
            _ => None,
        })
    }

    #[test]
    fn variables_are_put_in() {
        for (text, expected) in [
            ("", ""),
            ("${A}@${A}:${B:-}", "x@x:"),
            ("${B:-a b}${EMPTY:-c}${EMPTY}${A:-d}", "a bcx"),
            ("$A $ $$ $${A} $$${A}", "$A $ $$ ${A} $${A}"),
            ("${B:-a:-b}", "a:-b"),
        ] {
            assert_eq!(with(text).as_deref(), Ok(expected), "{text}");
        }
        for (text, expected) in [
            ("${B}", "variable B, which"),
            ("${", "without its }"),
            ("${A B}", "${A B}"),
            ("${}", "${}"),
            ("${1}", "${1}"),
        ] {
            assert!(with(text).is_err_and(|words| words.contains(expected)), "{text}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(text in "\\PC{0,20}", near in "[$A{}:é-]{0,16}") {
            let _ = (with(&text), with(&near));
        }

        #[test]
        fn what_has_no_variable_stays(text in "[^$]{0,30}") {
            prop_assert_eq!(with(&text), Ok(text));
        }
    }
}
