//! QEMU's options as groups of properties, wherever they come from.

use serde_json::Value;

/// QEMU's options in their order: the name of each, without dashes, and its value.
pub type OptionList = Vec<(String, String)>;

/// The properties of one option: `key=value,...`, or a JSON object. Later ones win.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Properties(Vec<(String, String)>);

impl Properties {
    /// Reads `text`, in which a first word without `=` is the value of the key `implied`. A word
    /// without `=` switches a property on. `,,` is a comma.
    pub(crate) fn parse(text: &str, implied: &str) -> Self {
        if text.trim_start().starts_with('{')
            && let Ok(Value::Object(object)) = serde_json::from_str(text)
        {
            let plain = |value: Value| match value {
                Value::String(text) => text,
                Value::Bool(on) => if on { "on" } else { "off" }.to_owned(),
                other => other.to_string(),
            };
            return Self(object.into_iter().map(|(key, value)| (key, plain(value))).collect());
        }
        let pairs = split(text).into_iter().enumerate().filter(|(_, word)| !word.is_empty());
        let pair = |(at, word): (usize, String)| match word.split_once('=') {
            Some((key, value)) => (key.trim().to_owned(), value.to_owned()),
            None if at == 0 => (implied.to_owned(), word),
            None => (word, "on".to_owned()),
        };
        Self(pairs.map(pair).collect())
    }

    pub(crate) fn get(&self, key: &str) -> Option<&str> {
        let mut matching = self.0.iter().rev().filter(|(name, _)| name == key);
        matching.next().map(|(_, value)| value.as_str())
    }

    /// Whether a property is switched on; `None` if it is not there, or is something else.
    pub(crate) fn is_on(&self, key: &str) -> Option<bool> {
        switch(self.get(key)?)
    }

    pub(crate) fn set(&mut self, key: &str, value: &str) {
        self.0.push((key.to_owned(), value.to_owned()));
    }

    /// Takes in what a later option of the same kind says.
    pub(crate) fn extend(&mut self, later: Self) {
        self.0.extend(later.0);
    }
}

/// `on`, `off` and QEMU's other words for them.
pub(crate) fn switch(word: &str) -> Option<bool> {
    match word {
        "on" | "yes" | "true" | "y" | "1" => Some(true),
        "off" | "no" | "false" | "n" | "0" => Some(false),
        _ => None,
    }
}

/// The words between commas, where two commas are one that belongs to the word.
fn split(text: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut letters = text.chars().peekable();
    while let Some(letter) = letters.next() {
        match (letter, words.last_mut()) {
            (',', Some(word)) if letters.next_if_eq(&',').is_some() => word.push(','),
            (',', _) => words.push(String::new()),
            (letter, Some(word)) => word.push(letter),
            (_, None) => {}
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_of_several_wins_and_the_first_word_has_its_key() {
        let found =
            Properties::parse("hv-balloon,id=a,,b,memdev=x,status-report,memdev=y", "driver");
        assert_eq!(found.get("driver"), Some("hv-balloon"));
        assert_eq!(found.get("id"), Some("a,b"));
        assert_eq!(found.get("memdev"), Some("y"));
        assert_eq!(found.is_on("status-report"), Some(true));
        assert_eq!(found.get("addr"), None);
    }

    #[test]
    fn json_is_a_form_of_it() {
        let text =
            r#"{"driver":"hv-balloon","status-report":true,"addr":34359738368,"x":{"y":[1]}}"#;
        let found = Properties::parse(text, "driver");
        assert_eq!(found.get("driver"), Some("hv-balloon"));
        assert_eq!(found.is_on("status-report"), Some(true));
        assert_eq!(found.get("addr"), Some("34359738368"));
    }

    #[test]
    fn broken_json_is_no_panic() {
        let deep = format!("{}1", "{\"a\":".repeat(5000));
        for text in ["{", "{}", "{\"driver\":", deep.as_str()] {
            assert_eq!(Properties::parse(text, "driver").get("id"), None);
        }
    }
}
