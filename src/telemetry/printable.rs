//! Text from outside (names of files, words of a server) as it may be shown to people.

/// Control characters, and those that change the direction of what follows, are written as `\u{…}`, so that no name can
/// clear a terminal or look like another one. Everything else stays as it is: markup is for whoever writes markup.
pub fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for char in text.chars() {
        if char.is_control() || is_direction(char) {
            shown.extend(char.escape_unicode());
        } else {
            shown.push(char);
        }
    }
    shown
}

/// Bidirectional formatting characters (Unicode Standard Annex #9, section 2), and the line separators.
fn is_direction(char: char) -> bool {
    matches!(char, '\u{200e}' | '\u{200f}' | '\u{061c}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{2028}' | '\u{2029}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_move_the_cursor_or_turn_the_line_round() {
        assert_eq!(printable("a\u{1b}[2J\nb\u{202e}c\u{7f}\u{9b}"), "a\\u{1b}[2J\\u{a}b\\u{202e}c\\u{7f}\\u{9b}");
        assert_eq!(printable("/srv/é <b> \"x\""), "/srv/é <b> \"x\"");
    }
}
