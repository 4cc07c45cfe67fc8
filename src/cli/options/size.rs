//! Sizes as people write them: `64M`, `64MiB`, `1G`; a bare number is bytes. Units are powers of 1024.

/// Units from small to large, in bytes.
const UNITS: [(char, u64); 4] = [('K', 1 << 10), ('M', 1 << 20), ('G', 1 << 30), ('T', 1 << 40)];

/// Reads a size; the error says what may be written.
pub fn parse(text: &str) -> Result<u64, String> {
    bytes(text.trim()).ok_or_else(|| {
        "is not a size: write a number of bytes, or of units of 1024 such as 512K, 64M, 64MiB, 1G".into()
    })
}

fn bytes(text: &str) -> Option<u64> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let factor = match unit {
        "" => 1,
        unit => {
            // MB is left out: to some it is a million bytes.
            let letter = unit.strip_suffix("iB").unwrap_or(unit).to_ascii_uppercase();
            UNITS.iter().find(|(name, _)| letter.chars().eq([*name]))?.1
        }
    };
    number.parse::<u64>().ok()?.checked_mul(factor)
}

/// The shortest text that [`parse`] reads back exactly.
pub fn format(bytes: u64) -> String {
    let unit = UNITS.iter().rev().find(|(_, factor)| bytes > 0 && bytes.is_multiple_of(*factor));
    unit.map_or(bytes.to_string(), |(name, factor)| format!("{}{name}iB", bytes / factor))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_people_write() {
        for (text, expected) in [
            ("0", 0),
            ("4096", 4096),
            ("512K", 512 << 10),
            ("64M", 64 << 20),
            ("64m", 64 << 20),
            ("64MiB", 64 << 20),
            ("1G", 1 << 30),
            ("2TiB", 2 << 40),
        ] {
            assert_eq!(parse(text), Ok(expected), "{text}");
        }
        for text in ["", " ", "M", "-1", "+1", "1.5M", "64MB", "64Mi", "64 M", "1MM", "0x10", "iB", "16777216T"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(text in "\\PC{0,24}", near in "[0-9]{0,22}[a-zA-Z]{0,4}") {
            let _ = (parse(&text), parse(&near));
        }

        #[test]
        fn round_trip(number in any::<u64>(), shift in 0u32..64) {
            let bytes = (number >> shift) << (shift / 2);
            prop_assert_eq!(parse(&format(bytes)), Ok(bytes));
        }
    }
}
