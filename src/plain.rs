//! Text from elsewhere (a server's words, names of files) made fit for a terminal and a line of a log.

/// The text without what a terminal would obey: control characters, and those that turn the direction of writing round.
pub(crate) fn plain(text: &str) -> String {
    let escape = |c: char| if obeyed(c) { c.escape_default().collect() } else { String::from(c) };
    text.chars().map(escape).collect()
}

/// The same of a text that is JSON, and is still JSON then. Only in strings can such characters be.
pub(crate) fn plain_json(text: &str) -> String {
    let mut units = [0; 2];
    let mut escape = |c: char| match obeyed(c) && c != '\n' {
        true => c.encode_utf16(&mut units).iter().map(|unit| format!("\\u{unit:04x}")).collect(),
        false => String::from(c),
    };
    text.chars().map(&mut escape).collect()
}

/// Bidirectional formatting characters (Unicode Standard Annex 9) are no control characters to Rust; nor are the separators.
pub(crate) fn obeyed(c: char) -> bool {
    let turns = matches!(c, '\u{200e}' | '\u{200f}' | '\u{061c}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    c.is_control() || turns || matches!(c, '\u{2028}' | '\u{2029}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_left_that_a_terminal_obeys() {
        assert_eq!(plain("a b/ä"), "a b/ä");
        assert_eq!(plain("\x1b[2J\n\r\t\u{9b}1m\x7f"), "\\u{1b}[2J\\n\\r\\t\\u{9b}1m\\u{7f}");
        let odd = "\u{9b}\u{7f}\u{202e}\n";
        let text = plain_json(&serde_json::to_string(odd).expect("text"));
        assert_eq!(text, r#""\u009b\u007f\u202e\n""#);
        assert_eq!(serde_json::from_str::<String>(&text).expect("JSON"), odd);
        assert_eq!(plain("cod\u{202e}exe.\u{2028}"), "cod\\u{202e}exe.\\u{2028}");
    }
}
