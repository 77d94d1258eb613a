//! The files of `-readconfig`: `[group "id"]`, then `key = "value"` (QEMU's `docs/config`).

use crate::options::Properties;

/// A group of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Group {
    pub(crate) name: String,
    pub(crate) id: Option<String>,
    pub(crate) properties: Properties,
}

/// Reads a file; `None` if a line is none of its format's.
pub(crate) fn parse(text: &str) -> Option<Vec<Group>> {
    let mut groups: Vec<Group> = Vec::new();
    for line in text.lines().map(str::trim) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        if let Some(head) = line.strip_prefix('[') {
            let head = head.strip_suffix(']')?;
            let (name, id) = match head.split_once('"') {
                Some((name, id)) => (name, Some(id.strip_suffix('"')?.to_owned())),
                None => (head, None),
            };
            let name = name.trim().to_owned();
            groups.push(Group { name, id, properties: Properties::default() });
            continue;
        }
        let (key, value) = line.split_once('=')?;
        let value = value.trim().strip_prefix('"')?.strip_suffix('"')?;
        groups.last_mut()?.properties.set(key.trim(), value);
    }
    Some(groups)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_have_ids_and_values() {
        let text = "# qemu config file\n\n[memory]\n  size = \"4G\"\n[device \"b\"]\n  driver = \"vmbus-bridge\"\n";
        let groups = parse(text).unwrap();
        assert_eq!((groups[0].name.as_str(), groups[0].id.as_deref()), ("memory", None));
        assert_eq!(groups[0].properties.get("size"), Some("4G"));
        assert_eq!((groups[1].name.as_str(), groups[1].id.as_deref()), ("device", Some("b")));
        assert_eq!(groups[1].properties.get("driver"), Some("vmbus-bridge"));
    }

    #[test]
    fn other_files_are_none() {
        for text in [
            "size = \"4G\"",
            "[memory",
            "[device \"b]",
            "[memory]\nsize = 4G",
            "[m]\nsize",
            "\u{7f}ELF",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
        assert_eq!(parse(""), Some(Vec::new()));
    }
}
