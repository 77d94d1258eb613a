//! Memory limits and pressure of control groups (cgroup v2).

use std::collections::HashMap;
use std::path::PathBuf;

use balancer::CgroupLimit;

use crate::host::{kib_field, number, pressure, text};

/// The groups at one moment; each limit is read once.
pub(crate) struct Groups {
    root: PathBuf,
    limits_kib: HashMap<String, Option<u64>>,
}

impl Groups {
    pub(crate) fn new(root: PathBuf) -> Self {
        Self { root, limits_kib: HashMap::new() }
    }

    /// The smallest limit that applies to a group: its own and those above it.
    pub(crate) fn limit(&mut self, path: &str) -> Option<u64> {
        ancestors(path).filter_map(|path| self.own_limit(path)).min()
    }

    /// `some avg10` of a group, in thousandths.
    pub(crate) fn pressure(&self, path: &str) -> u32 {
        pressure(&self.file(path, "memory.pressure")).0
    }

    /// Of the groups that hold all of `paths`, the one with the smallest limit.
    pub(crate) fn common<'a>(
        &mut self,
        mut paths: impl Iterator<Item = &'a str>,
    ) -> Option<CgroupLimit> {
        let first = paths.next()?;
        let mut holding: Vec<&str> = ancestors(first).collect();
        for path in paths {
            holding.retain(|group| ancestors(path).any(|other| other == *group));
        }
        let limits = holding.into_iter().filter_map(|path| Some((self.own_limit(path)?, path)));
        let (limit_kib, path) = limits.min()?;
        let stat = text(&self.file(path, "memory.stat")).unwrap_or_default();
        Some(CgroupLimit {
            limit_kib,
            current_kib: number(&self.file(path, "memory.current"))? / 1024,
            reclaimable_kib: kib_field(&stat, "inactive_file").unwrap_or(0) / 1024,
        })
    }

    fn own_limit(&mut self, path: &str) -> Option<u64> {
        if let Some(known) = self.limits_kib.get(path) {
            return *known;
        }
        let limit_kib = number(&self.file(path, "memory.max")).map(|bytes| bytes / 1024);
        self.limits_kib.insert(path.to_owned(), limit_kib);
        limit_kib
    }

    fn file(&self, path: &str, name: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/')).join(name)
    }
}

/// A group and those above it, without the root, which has no limit.
fn ancestors(path: &str) -> impl Iterator<Item = &str> {
    let mut next = Some(path.trim_end_matches('/'));
    std::iter::from_fn(move || {
        let path = next.filter(|path| !path.is_empty())?;
        next = path.rfind('/').and_then(|at| path.get(..at));
        Some(path)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_are_in_those_above_them() {
        let groups = |path| ancestors(path).collect::<Vec<_>>();
        assert_eq!(groups("/a/b/c"), ["/a/b/c", "/a/b", "/a"]);
        assert_eq!(groups("/ab"), ["/ab"]);
        assert_eq!(groups("/"), [""; 0]);
    }
}
