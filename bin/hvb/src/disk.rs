//! `--disk`: the text of the option.

use std::path::PathBuf;

use vmm::{DiskConfig, DiskFormat};

/// The most bytes of a disk's name in the guest.
const ID_BYTES: usize = 20;

/// Reads `FILE[,readonly][,format=raw|qcow2][,id=NAME]`. A comma in the file's name is written twice.
pub(crate) fn parse(text: &str) -> Result<DiskConfig, String> {
    let mut parts = split(text).into_iter();
    let path = PathBuf::from(parts.next().unwrap_or_default());
    if path.as_os_str().is_empty() {
        return Err("name an image file".to_owned());
    }
    let mut disk = DiskConfig { path, format: None, is_read_only: false, id: None };
    for part in parts {
        match part.split_once('=') {
            None if part == "readonly" => disk.is_read_only = true,
            Some(("format", "raw")) => disk.format = Some(DiskFormat::Raw),
            Some(("format", "qcow2")) => disk.format = Some(DiskFormat::Qcow2),
            Some(("format", other)) => {
                return Err(format!("the format {other} is not known: give raw or qcow2"));
            }
            Some(("id", id)) if id.is_empty() || id.len() > ID_BYTES => {
                return Err(format!("id={id}: give a name of 1 to {ID_BYTES} bytes"));
            }
            Some(("id", id)) => disk.id = Some(id.to_owned()),
            _ => {
                return Err(format!(
                    "{part} is not known: there are readonly, format=raw|qcow2 and id=NAME, and a \
                     comma in the file's name is written twice"
                ));
            }
        }
    }
    Ok(disk)
}

/// Splits at single commas; two are one that stays.
pub(crate) fn split(text: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        if character == ',' && characters.next_if_eq(&',').is_none() {
            parts.push(String::new());
        } else if let Some(last) = parts.last_mut() {
            last.push(character);
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_a_file_and_what_is_said_about_it() {
        let disk = parse("a,,b.img,readonly,format=qcow2,id=root").unwrap();
        assert_eq!(disk.path, PathBuf::from("a,b.img"));
        assert_eq!(disk.format, Some(DiskFormat::Qcow2));
        assert!(disk.is_read_only);
        assert_eq!(disk.id.as_deref(), Some("root"));
        let disk = parse("a.img").unwrap();
        assert_eq!((disk.format, disk.is_read_only, disk.id), (None, false, None));
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        let error = |text| parse(text).unwrap_err();
        assert_eq!(error(""), "name an image file");
        assert_eq!(error("a,format=vmdk"), "the format vmdk is not known: give raw or qcow2");
        assert!(error("a,ro").starts_with("ro is not known: there are readonly"));
        assert!(error("a,readonly=yes").contains("is not known"));
        assert!(error("a,id=012345678901234567890").ends_with("give a name of 1 to 20 bytes"));
    }
}
