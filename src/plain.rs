//! Text from elsewhere (a server's words, names of files) made fit for a terminal and a line of a log.

/// The text without what a terminal would obey: control characters, and those that turn the direction of writing round.
pub(crate) fn plain(text: &str) -> String {
    let escape = |c: char| if obeyed(c) { c.escape_default().collect() } else { String::from(c) };
    text.chars().map(escape).collect()
}

/// Bidirectional formatting characters (Unicode Standard Annex 9) are no control characters to Rust; nor are the separators.
fn obeyed(c: char) -> bool {
    let turns = matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    c.is_control() || turns || matches!(c, '\u{2028}' | '\u{2029}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_left_that_a_terminal_obeys() {
        assert_eq!(plain("a b/ä"), "a b/ä");
        assert_eq!(plain("\x1b[2J\n\r\t\u{9b}1m\x7f"), "\\u{1b}[2J\\n\\r\\t\\u{9b}1m\\u{7f}");
        assert_eq!(plain("cod\u{202e}exe.\u{2028}"), "cod\\u{202e}exe.\\u{2028}");
    }
}
