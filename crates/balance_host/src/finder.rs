//! Finds VMs: sockets under a glob, each with a name.

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Component, Path, PathBuf};
use std::time::Duration;
use std::{fs, iter};

use crate::stamp::FileStamp;

/// The most VMs of a host. Each has a thread.
const MAX_VMS: usize = 4096;

/// Characters that make a pattern of a name.
const WILD: [char; 3] = ['*', '?', '['];

/// A VM's socket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found {
    /// The VM's name.
    pub name: String,
    /// Device and inode: another socket at the same path is another VM's, or one's that was started
    /// again.
    pub identity: (u64, u64),
}

/// A pattern that is none.
#[derive(Debug, thiserror::Error)]
#[error("'{pattern}' is no pattern for sockets, such as /run/hvb/*.sock: {reason}")]
pub struct BadPattern {
    pattern: String,
    reason: &'static str,
}

/// Looks for sockets again and again, and only where something may have changed.
#[derive(Debug, Default)]
pub(crate) struct Finder {
    /// The patterns' directories at the last look.
    seen: Option<Vec<FileStamp>>,
    looks: u32,
}

/// As often as every so many times, the finder looks whatever the directories say: what a symbolic link leads to
/// changes elsewhere.
const WHOLE_LOOKS: u32 = 5;

/// A directory that changed less than this ago may change again within the same time stamp.
const REST: Duration = Duration::from_secs(1);

impl Finder {
    /// As [`find`]; `None` if nothing has changed since the last call.
    pub(crate) fn look(
        &mut self,
        patterns: &[String],
    ) -> Result<Option<BTreeMap<PathBuf, Found>>, BadPattern> {
        let is_whole = self.looks.is_multiple_of(WHOLE_LOOKS);
        self.looks = self.looks.wrapping_add(1);
        let seen: Option<Vec<_>> = patterns.iter().map(|pattern| stamp(pattern)).collect();
        if !is_whole && seen.is_some() && seen == self.seen {
            return Ok(None);
        }
        self.seen = seen;
        find(patterns).map(Some)
    }
}

/// That of the directory of a pattern, unless it is a pattern as well, does not exist or has just changed.
fn stamp(pattern: &str) -> Option<FileStamp> {
    let (directory, _) = pattern.rsplit_once('/')?;
    if directory.is_empty() || directory.contains(WILD) {
        return None;
    }
    FileStamp::of(Path::new(directory)).filter(|stamp| stamp.has_rested(REST))
}

/// The sockets that match any of the patterns, by path.
///
/// A VM is named by what differs between the sockets: the first part of the path in which the pattern
/// has a wildcard, without the text around the wildcards. So `/run/hvb/*.sock` and `/run/vm/*/qmp` both
/// name by what stands for `*`. Where that is no unique name, the path is the name. A wildcard does not stand
/// for a hidden file. Of several names of one socket, such as symbolic links to it, its own is taken.
///
/// # Errors
/// A pattern is none.
pub fn find(patterns: &[String]) -> Result<BTreeMap<PathBuf, Found>, BadPattern> {
    let mut found = BTreeMap::new();
    for pattern in patterns {
        let bad =
            |error: glob::PatternError| BadPattern { pattern: pattern.clone(), reason: error.msg };
        // Directories that cannot be read have no sockets for this user.
        let paths = glob::glob(pattern).map_err(bad)?.flatten();
        let dotted = dotted(pattern);
        for path in paths.filter(|path| !is_hidden(path, &dotted)) {
            if found.len() == MAX_VMS {
                tracing::warn!("more than {MAX_VMS} sockets match: the others are left alone");
                return Ok(found);
            }
            let Ok(file) = fs::metadata(&path) else { continue };
            if file.file_type().is_socket() {
                let name = name(pattern, &path);
                found.insert(path, Found { name, identity: (file.dev(), file.ino()) });
            }
        }
    }
    drop_aliases(&mut found);
    name_apart(&mut found);
    Ok(found)
}

/// The parts of a pattern that are meant for names that begin with a dot.
fn dotted(pattern: &str) -> Vec<glob::Pattern> {
    let parts = pattern.split('/').filter(|part| part.starts_with('.'));
    parts.filter_map(|part| glob::Pattern::new(part).ok()).collect()
}

/// Whether a wildcard stands for a name that begins with a dot. (The option of `glob` that looks for that
/// panics where a name is not UTF-8, in version 0.3.4.)
fn is_hidden(path: &Path, dotted: &[glob::Pattern]) -> bool {
    let is_meant = |part: &str| dotted.iter().any(|pattern| pattern.matches(part));
    let mut parts = path.components().map(|part| part.as_os_str());
    parts.any(|part| part.as_bytes().starts_with(b".") && !part.to_str().is_some_and(is_meant))
}

/// Leaves one path of each socket: a socket that was told by two names would be two VMs, of twice the memory.
fn drop_aliases(found: &mut BTreeMap<PathBuf, Found>) {
    let mut own: BTreeMap<(u64, u64), PathBuf> = BTreeMap::new();
    for (path, vm) in &*found {
        let is_alias = || fs::symlink_metadata(path).is_ok_and(|file| file.is_symlink());
        if !own.contains_key(&vm.identity) || !is_alias() {
            own.insert(vm.identity, path.clone());
        }
    }
    found.retain(|path, vm| own.get(&vm.identity) == Some(path));
}

fn name_apart(found: &mut BTreeMap<PathBuf, Found>) {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for vm in found.values() {
        *counts.entry(vm.name.clone()).or_default() += 1;
    }
    for (path, vm) in found {
        if vm.name.is_empty() || counts.get(&vm.name).is_some_and(|count| *count > 1) {
            vm.name = path.display().to_string();
        }
    }
}

fn name(pattern: &str, path: &Path) -> String {
    let components = |path: &Path| -> Vec<String> {
        let named = path.components().filter(|part| !matches!(part, Component::CurDir));
        named.map(|part| part.as_os_str().to_string_lossy().into_owned()).collect()
    };
    let wild = iter::zip(components(Path::new(pattern)), components(path))
        .find(|(pattern, _)| pattern.contains(WILD));
    match wild {
        // Any number of components: they are not in step.
        Some((pattern, _)) if pattern == "**" => stem(path),
        Some((pattern, text)) => inner(&pattern, &text).to_owned(),
        None => stem(path),
    }
}

/// What stands for the wildcards, and what is between them.
fn inner<'a>(pattern: &str, text: &'a str) -> &'a str {
    let (first, last) = (pattern.find(WILD), pattern.rfind(['*', '?', ']']));
    let before = pattern.get(..first.unwrap_or(0)).unwrap_or("");
    let after = last.and_then(|last| pattern.get(last + 1..)).unwrap_or("");
    let text = text.strip_prefix(before).unwrap_or(text);
    text.strip_suffix(after).unwrap_or(text)
}

fn stem(path: &Path) -> String {
    path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsStr;
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;
    use std::time::SystemTime;

    #[test]
    fn names_are_what_stands_for_the_wildcards() {
        let name = |pattern, path| name(pattern, Path::new(path));
        assert_eq!(name("/run/hvb/*.sock", "/run/hvb/db.sock"), "db");
        assert_eq!(name("/run/vm/*/qmp.sock", "/run/vm/web/qmp.sock"), "web");
        assert_eq!(name("/run/qmp-*-[0-9].s", "/run/qmp-a-1.s"), "a-1");
        assert_eq!(name("./*.sock", "db.sock"), "db");
        assert_eq!(name("/run/**/qmp.sock", "/run/a/b/qmp.sock"), "qmp");
        assert_eq!(name("/run/one.sock", "/run/one.sock"), "one");
        assert_eq!(name("/run/*", "/run/a.b"), "a.b");
    }

    #[test]
    fn sockets_are_found_and_told_apart() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        fs::create_dir(at("sub")).unwrap();
        let _sockets = ["a.sock", "b.sock", "sub/a.sock", ".hidden.sock"]
            .map(|name| UnixListener::bind(at(name)).unwrap());
        fs::write(at("file.sock"), "").unwrap();
        let pattern = |name: &str| at(name).to_str().unwrap().to_owned();
        let names = |patterns: &[String]| -> Vec<String> {
            find(patterns).unwrap().into_values().map(|vm| vm.name).collect()
        };
        assert_eq!(names(&[pattern("*.sock")]), ["a", "b"]);
        assert_eq!(names(&[pattern("*.sock"), pattern("a.*")]), ["sock", "b"], "the last names");
        let both = names(&[pattern("*.sock"), pattern("sub/*.sock")]);
        assert_eq!(both, [pattern("a.sock"), "b".to_owned(), pattern("sub/a.sock")]);
    }

    #[test]
    fn a_directory_that_rests_is_not_read_again_before_it_changes() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let _socket = UnixListener::bind(at("a.sock")).unwrap();
        let patterns = [at("*.sock").to_str().unwrap().to_owned()];
        let mut finder = Finder::default();
        let mut count = || finder.look(&patterns).unwrap().map(|found| found.len());
        assert_eq!([count(), count(), count()], [Some(1); 3], "it has just changed");
        let rests = || {
            let then = SystemTime::now() - 2 * REST;
            fs::File::open(directory.path()).unwrap().set_modified(then).unwrap();
        };
        rests();
        let counts: Vec<_> =
            std::iter::repeat_with(&mut count).take(3 * WHOLE_LOOKS as usize).collect();
        assert_eq!(counts[0], Some(1));
        assert_eq!(counts.iter().flatten().count(), 4, "and each fifth time");
        let _other = UnixListener::bind(at("b.sock")).unwrap();
        assert_eq!(count(), Some(2));

        let anywhere = [at("../*/*.sock").to_str().unwrap().to_owned()];
        let mut finder = Finder::default();
        assert!((0..9).all(|_| finder.look(&anywhere).unwrap().is_some()));
    }

    #[test]
    fn names_that_are_no_text_and_hidden_ones_are_left_alone() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &[u8]| directory.path().join(OsStr::from_bytes(name));
        fs::create_dir(at(b"x\xff")).unwrap();
        fs::create_dir(at(b".hidden")).unwrap();
        let names = [&b"a.sock"[..], b"\xff.sock", b"x\xff/b.sock", b".hidden/c.sock", b".d.sock"];
        let _sockets = names.map(|name| UnixListener::bind(at(name)).unwrap());
        let names = |pattern: &str| -> Vec<String> {
            let pattern = directory.path().join(pattern).to_str().unwrap().to_owned();
            find(&[pattern]).unwrap().into_values().map(|vm| vm.name).collect()
        };
        assert_eq!(names("*.sock"), ["a"]);
        assert_eq!(names("*/*.sock"), [""; 0]);
        assert_eq!(names(".*.sock"), ["d"]);
        assert_eq!(names(".hidden/*.sock"), ["c"]);
    }

    #[test]
    fn a_socket_with_several_names_is_one_machine() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let _socket = UnixListener::bind(at("real.sock")).unwrap();
        for link in ["a.sock", "z.sock"] {
            symlink(at("real.sock"), at(link)).unwrap();
        }
        let names = |pattern: &str| -> Vec<String> {
            let pattern = at(pattern).to_str().unwrap().to_owned();
            find(&[pattern]).unwrap().into_values().map(|vm| vm.name).collect()
        };
        assert_eq!(names("*.sock"), ["real"]);
        assert_eq!(names("[az].sock"), ["a"]);
    }

    #[test]
    fn a_pattern_that_is_none_is_named() {
        let error = find(&["/run/[".to_owned()]).unwrap_err().to_string();
        assert!(error.starts_with("'/run/[' is no pattern for sockets"), "{error}");
    }
}
