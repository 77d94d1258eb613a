//! Cuts a byte stream into JSON values.
//!
//! QMP has no frame markers: a value ends where its brackets balance. Values may share a line or
//! span several. Like QEMU, the framer accepts strings in single quotes, and answers garbage with
//! an error and then resynchronises: it skips to the next bracket, comma, colon or control
//! character. The bytes 0xFE and 0xFF cannot occur in UTF-8 and abort whatever was in progress,
//! which lets a client put the stream into a known state.

use serde_json::Value;
use std::mem;

/// Deepest nesting of brackets in a value. QEMU takes 1024; no command of ours needs more than 3.
const MAX_DEPTH: usize = 64;

/// Longest excerpt of invalid input that is quoted back to the client, in bytes.
const MAX_QUOTED: usize = 40;

/// Memory for the next value that is kept, in bytes.
const KEPT_BYTES: usize = 4 << 10;

/// Cuts bytes into values; see the module documentation.
#[derive(Debug)]
pub(crate) struct Framer {
    /// Longest value accepted, in bytes.
    limit: usize,
    input: Vec<u8>,
    /// How much of `input` has been consumed.
    taken: usize,
    /// The value being collected, with all quotes converted to double quotes.
    text: Vec<u8>,
    /// The value in `text` is whole, and was handed out.
    is_whole: bool,
    /// Open brackets of either kind in `text`.
    depth: usize,
    state: State,
}

/// Where in the grammar the next byte falls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Between values, or between the tokens of a value with open brackets.
    Tokens,
    /// In a number or keyword that stands outside any bracket.
    Word,
    /// In a string that `quote` closes.
    Text { quote: u8, escaped: bool },
    /// After an error: skipping to a byte that may begin something valid.
    Skipping,
    /// After a value that exceeds a limit: skipping to the end of the line, or its rest would count
    /// as thousands of broken values.
    SkippingLine,
}

/// Why the bytes are not a value. The texts are QEMU's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum FrameError {
    /// A byte, or an unfinished string, in a place where nothing allows it.
    #[error("JSON parse error, stray '{0}'")]
    Stray(String),
    /// A word other than `true`, `false` and `null`.
    #[error("JSON parse error, invalid keyword '{0}'")]
    Keyword(String),
    /// Tokens in an order that forms no value.
    #[error("JSON parse error, {0}")]
    Syntax(String),
    /// A value longer than the limit.
    #[error("JSON value is longer than {0} bytes")]
    TooLong(usize),
    /// Brackets nested deeper than `MAX_DEPTH`.
    #[error("JSON nesting depth limit exceeded")]
    TooDeep,
}

impl Framer {
    /// A framer that accepts values of at most `limit` bytes.
    pub(crate) fn new(limit: usize) -> Self {
        let (input, text) = (Vec::new(), Vec::new());
        Self { limit, input, taken: 0, text, is_whole: false, depth: 0, state: State::Tokens }
    }

    /// Adds bytes from the stream. Take all messages before the next call.
    pub(crate) fn push(&mut self, bytes: &[u8]) {
        self.input.drain(..mem::take(&mut self.taken));
        self.input.extend_from_slice(bytes);
    }

    /// The next value or error, or `None` when more bytes are needed.
    pub(crate) fn next_message(&mut self) -> Option<Result<Value, FrameError>> {
        Some(self.next_text()?.and_then(parse))
    }

    /// The text of the next value, of which no more is known than that its brackets balance, or an
    /// error; `None` when more bytes are needed.
    pub(crate) fn next_text(&mut self) -> Option<Result<&[u8], FrameError>> {
        if mem::take(&mut self.is_whole) {
            self.text.clear();
            self.text.shrink_to(KEPT_BYTES);
        }
        loop {
            self.take_plain();
            let &byte = self.input.get(self.taken)?;
            self.taken += 1;
            match self.step(byte) {
                None => {}
                Some(Ok(())) => return Some(Ok(&self.text)),
                Some(Err(error)) => return Some(Err(error)),
            }
        }
    }

    /// Takes at once what stands in a string and means only itself, within the limit.
    fn take_plain(&mut self) {
        if !matches!(self.state, State::Text { escaped: false, .. }) {
            return;
        }
        let rest = self.input.get(self.taken..).unwrap_or_default();
        let room = self.limit.saturating_sub(self.text.len());
        let plain = rest.iter().take(room).take_while(|byte| is_plain(**byte)).count();
        self.text.extend(rest.iter().take(plain));
        self.taken += plain;
    }

    fn step(&mut self, byte: u8) -> Option<Result<(), FrameError>> {
        match self.state {
            State::Tokens => self.in_tokens(byte),
            State::Word => self.in_word(byte),
            State::Text { quote, escaped } => self.in_text(byte, quote, escaped),
            State::Skipping if is_landmark(byte) => {
                self.state = State::Tokens;
                // The landmark may itself begin a value; a reset byte only ends the skipping.
                if byte >= 0xFE { None } else { self.in_tokens(byte) }
            }
            State::SkippingLine if byte == b'\n' || byte >= 0xFE => {
                self.state = State::Tokens;
                None
            }
            State::Skipping | State::SkippingLine => None,
        }
    }

    fn in_tokens(&mut self, byte: u8) -> Option<Result<(), FrameError>> {
        match byte {
            b' ' | b'\t' | b'\r' | b'\n' if self.depth == 0 => None,
            b' ' | b'\t' | b'\r' | b'\n' => self.keep(byte),
            b'{' | b'[' if self.depth == MAX_DEPTH => Some(Err(self.give_up(FrameError::TooDeep))),
            b'{' | b'[' => {
                self.depth += 1;
                self.keep(byte)
            }
            b'}' | b']' => {
                self.depth = self.depth.saturating_sub(1);
                self.keep(byte).or_else(|| self.finish_if_balanced())
            }
            b',' | b':' => self.keep(byte).or_else(|| self.finish_if_balanced()),
            b'"' | b'\'' => {
                self.state = State::Text { quote: byte, escaped: false };
                self.keep(b'"')
            }
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'+' | b'.' => {
                if self.depth == 0 {
                    self.state = State::Word;
                }
                self.keep(byte)
            }
            _ => Some(Err(self.stray(byte))),
        }
    }

    fn in_word(&mut self, byte: u8) -> Option<Result<(), FrameError>> {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'+' | b'.') {
            return self.keep(byte);
        }
        // The byte belongs to the next token.
        self.taken -= 1;
        Some(self.finish())
    }

    fn in_text(&mut self, byte: u8, quote: u8, escaped: bool) -> Option<Result<(), FrameError>> {
        self.state = State::Text { quote, escaped: !escaped && byte == b'\\' };
        match byte {
            0..0x20 | 0xFE | 0xFF => {
                let error = self.stray(byte);
                if is_landmark(byte) {
                    self.state = State::Tokens;
                }
                Some(Err(error))
            }
            // JSON has no \' escape, and needs \" for a double quote inside the string.
            b'\'' if escaped => {
                self.text.pop();
                self.keep(byte)
            }
            b'"' if !escaped && quote == b'\'' => self.keep(b'\\').or_else(|| self.keep(byte)),
            _ if byte == quote && !escaped => {
                self.state = State::Tokens;
                self.keep(b'"').or_else(|| self.finish_if_balanced())
            }
            _ => self.keep(byte),
        }
    }

    fn keep(&mut self, byte: u8) -> Option<Result<(), FrameError>> {
        if self.text.len() >= self.limit {
            return Some(Err(self.give_up(FrameError::TooLong(self.limit))));
        }
        self.text.push(byte);
        None
    }

    fn finish_if_balanced(&mut self) -> Option<Result<(), FrameError>> {
        (self.depth == 0).then(|| self.finish())
    }

    fn finish(&mut self) -> Result<(), FrameError> {
        self.state = State::Tokens;
        self.depth = 0;
        self.is_whole = true;
        Ok(())
    }

    fn stray(&mut self, byte: u8) -> FrameError {
        let in_text = matches!(self.state, State::Text { .. });
        let text = self.reset(State::Skipping);
        if byte >= 0xFE {
            self.state = State::Tokens;
        }
        if in_text {
            let start = text.iter().rposition(|&b| b == b'"').unwrap_or(0);
            FrameError::Stray(quotable(text.get(start..).unwrap_or_default()))
        } else {
            FrameError::Stray(quotable(&[byte]))
        }
    }

    fn give_up(&mut self, error: FrameError) -> FrameError {
        self.reset(State::SkippingLine);
        error
    }

    fn reset(&mut self, state: State) -> Vec<u8> {
        self.state = state;
        self.depth = 0;
        mem::take(&mut self.text)
    }
}

/// Whether a byte in a string neither ends it nor is treated in any other way.
fn is_plain(byte: u8) -> bool {
    matches!(byte, 0x20..0xFE) && !matches!(byte, b'"' | b'\'' | b'\\')
}

/// The value in a text.
pub(crate) fn parse(text: &[u8]) -> Result<Value, FrameError> {
    serde_json::from_slice(text).map_err(|error| {
        if text.iter().all(u8::is_ascii_alphabetic) {
            FrameError::Keyword(quotable(text))
        } else {
            FrameError::Syntax(error.to_string())
        }
    })
}

/// Bytes at which a valid value may begin again after an error.
fn is_landmark(byte: u8) -> bool {
    matches!(byte, b'{' | b'}' | b'[' | b']' | b',' | b':' | 0xFE | 0xFF)
        || (byte < 0x20 && byte != b'\t')
}

/// The start of `bytes` as text that is safe to quote in an error.
fn quotable(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes.get(..MAX_QUOTED).unwrap_or(bytes))
        .chars()
        .filter(|c| !c.is_control())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    const LIMIT: usize = 200;

    fn frame(bytes: &[u8]) -> Vec<Result<Value, FrameError>> {
        frame_pieces(&[bytes])
    }

    fn frame_pieces(pieces: &[&[u8]]) -> Vec<Result<Value, FrameError>> {
        let mut framer = Framer::new(LIMIT);
        let mut found = vec![];
        for piece in pieces {
            framer.push(piece);
            found.extend(std::iter::from_fn(|| framer.next_message()));
        }
        found
    }

    fn texts(bytes: &[u8]) -> Vec<String> {
        frame(bytes)
            .into_iter()
            .map(|result| result.map_or_else(|e| e.to_string(), |v| v.to_string()))
            .collect()
    }

    #[test]
    fn values_share_a_line_or_span_lines() {
        assert_eq!(texts(b"{\"a\":1}{\"b\":\n[2,\r\n3]}\n\n"), ["{\"a\":1}", "{\"b\":[2,3]}"]);
    }

    #[test]
    fn brackets_and_escaped_quotes_in_strings_end_nothing() {
        let text = br#"{"a":"}]\"}","b":"\\"}{"c":2}"#;
        assert_eq!(frame(text), [Ok(json!({"a": "}]\"}", "b": "\\"})), Ok(json!({"c": 2}))]);
    }

    #[test]
    fn single_quotes_are_quotes() {
        assert_eq!(frame(br#"{'a':'say "hi", it\'s'}"#), [Ok(json!({"a": "say \"hi\", it's"}))]);
    }

    #[test]
    fn a_word_ends_where_something_else_begins() {
        assert_eq!(frame(b"5 true{}"), [Ok(json!(5)), Ok(json!(true)), Ok(json!({}))]);
        assert_eq!(frame(b"garbage"), []);
        assert_eq!(texts(b"garbage\n"), ["JSON parse error, invalid keyword 'garbage'"]);
    }

    #[test]
    fn nonsense_is_answered_and_the_next_value_is_found() {
        let good = "{\"a\":1}";
        for nonsense in ["@ what ", "!%&/", "\u{7f}", "'abc\n", "{@", "{\"a\": \"x\n", "]", ":"] {
            let found = texts(format!("{nonsense}{good}").as_bytes());
            assert_eq!(found.len(), 2, "{nonsense:?}: {found:?}");
            assert!(found[0].starts_with("JSON parse error, "), "{found:?}");
            assert_eq!(found[1], good, "{nonsense:?}");
        }
    }

    #[test]
    fn reset_bytes_end_an_unfinished_value() {
        for start in [&b"{\"a\": [["[..], b"{\"a\": \"open", b"@@@"] {
            let found = texts(&[start, b"\xff{\"a\":1}"].concat());
            assert_eq!(found.len(), 2, "{found:?}");
            assert_eq!(found[1], "{\"a\":1}");
        }
    }

    #[test]
    fn strings_that_are_not_utf8_are_errors() {
        let found = frame(b"{\"a\":\"\xc3\x28\"}{}");
        assert!(found[0].is_err());
        assert_eq!(found[1], Ok(json!({})));
    }

    #[test]
    fn a_value_over_the_limit_is_one_error_and_its_line_is_skipped() {
        let long = format!("{{\"a\":[{}1]}}", "1,".repeat(LIMIT));
        let found = frame(format!("{long}\n{{}}").as_bytes());
        assert_eq!(found, [Err(FrameError::TooLong(LIMIT)), Ok(json!({}))]);
    }

    #[test]
    fn a_value_of_exactly_the_limit_passes() {
        let text = format!("{{\"a\":\"{}\"}}", "x".repeat(LIMIT - 8));
        assert_eq!(text.len(), LIMIT);
        assert!(frame(text.as_bytes())[0].is_ok());
    }

    #[test]
    fn nesting_is_limited() {
        let deep = "[".repeat(MAX_DEPTH) + &"]".repeat(MAX_DEPTH);
        assert!(frame(deep.as_bytes())[0].is_ok());
        let found = frame(format!("[{deep}]\n{{}}").as_bytes());
        assert_eq!(found, [Err(FrameError::TooDeep), Ok(json!({}))]);
    }

    /// Streams rich in the bytes that matter to the framer.
    fn stream() -> impl Strategy<Value = Vec<u8>> {
        let piece = prop_oneof![
            prop::sample::select(b"{}[],:\"'\\\n \t@0atrue-.\xff\xfe\xc3\0".to_vec())
                .prop_map(|byte| vec![byte]),
            any::<u8>().prop_map(|byte| vec![byte]),
            Just(b"{\"execute\":\"x\"}".to_vec()),
            Just(vec![b'['; MAX_DEPTH]),
            Just(vec![b'x'; LIMIT]),
        ];
        prop::collection::vec(piece, 0..60).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #[test]
        fn where_the_stream_is_split_does_not_matter(
            bytes in stream(),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
        ) {
            let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
            at.sort_unstable();
            let mut pieces = vec![];
            let mut start = 0;
            for end in at {
                pieces.push(&bytes[start..end]);
                start = end;
            }
            pieces.push(&bytes[start..]);
            prop_assert_eq!(frame_pieces(&pieces), frame(&bytes));
        }

        #[test]
        fn after_any_garbage_a_reset_and_a_line_end_a_command_is_understood(bytes in stream()) {
            let found = frame(&[&bytes[..], b"\xff\n{\"execute\":\"x\"}"].concat());
            prop_assert_eq!(found.last(), Some(&Ok(json!({"execute": "x"}))));
        }

        #[test]
        fn memory_stays_within_the_limit(bytes in stream()) {
            let mut framer = Framer::new(LIMIT);
            framer.push(&bytes);
            while framer.next_message().is_some() {
                prop_assert!(framer.text.len() <= LIMIT);
            }
            prop_assert!(framer.text.len() <= LIMIT);
        }

        #[test]
        fn serialised_values_come_back(
            pairs in prop::collection::btree_map("[a-z'\"\\\\]{0,4}", ".{0,8}", 0..4),
        ) {
            let value = json!(pairs);
            let text = value.to_string();
            prop_assume!(text.len() <= LIMIT);
            prop_assert_eq!(frame(text.as_bytes()), [Ok(value)]);
        }
    }
}
