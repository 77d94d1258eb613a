//! A set with the design of the range tree in QEMU's hv-balloon: glib's balanced tree, sorted by
//! first page, with an allocated key and an allocated range for each entry, and adjacent ranges
//! merged at each insert. It is written from scratch, with the fewest lookups that glib allows.

#![expect(unsafe_code, reason = "glib's tree holds raw pointers")]

use std::cmp::Ordering;
use std::ffi::{c_int, c_void};

use crate::PageSet;
use crate::glib::{Glib, Pointer};

/// The value of an entry.
#[derive(Clone, Copy)]
struct Range {
    start: u64,
    count: u64,
}

impl Range {
    const fn end(&self) -> u64 {
        self.start + self.count
    }
}

pub(crate) struct GTreeSet {
    glib: &'static Glib,
    tree: Pointer,
}

impl PageSet for GTreeSet {
    fn empty(_pages: u64) -> Self {
        let glib = match Glib::get() {
            Ok(glib) => glib,
            Err(error) => panic!("{error:#}"),
        };
        let free = Some(glib.free);
        // SAFETY: `compare` takes the keys that are inserted; `g_free` may free keys and values.
        let tree = unsafe { (glib.tree_new_full)(compare, std::ptr::null_mut(), free, free) };
        Self { glib, tree }
    }

    fn insert(&mut self, start: u64, count: u64) -> u64 {
        let end = start + count;
        let above = self.upper_bound(start);
        let below = if above.is_null() { self.last() } else { self.previous(above) };
        let joined = self.range(below).filter(|range| range.end() >= start);
        let (node, mut next, mut merged) = match joined {
            Some(range) => {
                let merged =
                    Range { start: range.start, count: range.end().max(end) - range.start };
                (below, above, merged)
            }
            None => {
                let node = self.insert_new(start, count);
                (node, self.next(node), Range { start, count })
            }
        };
        let mut held = joined.map_or(0, |range| range.end().min(end) - start);
        while let Some(range) = self.range(next).filter(|range| range.start <= merged.end()) {
            held += range.end().min(end).saturating_sub(range.start);
            merged.count = range.end().max(merged.end()) - merged.start;
            let after = self.next(next);
            self.remove(range.start);
            next = after;
        }
        self.set_range(node, merged);
        count - held
    }

    fn take_last(&mut self, max: u64) -> Option<(u64, u64)> {
        let last = self.last();
        let range = self.range(last)?;
        if range.count > max {
            let left = Range { start: range.start, count: range.count - max };
            self.set_range(last, left);
            return Some((left.end(), max));
        }
        self.remove(range.start);
        Some((range.start, range.count))
    }
}

impl GTreeSet {
    /// The range of a node of the tree; `None` if the node is null.
    fn range(&self, node: Pointer) -> Option<Range> {
        // SAFETY: the value is a range that `insert_new` wrote.
        (!node.is_null()).then(|| unsafe { self.value(node).read() })
    }

    fn set_range(&mut self, node: Pointer, range: Range) {
        // SAFETY: the value is a range that `insert_new` wrote, and nothing refers to it.
        unsafe { self.value(node).write(range) };
    }

    fn value(&self, node: Pointer) -> *mut Range {
        // SAFETY: callers have the node from the tree and have not removed it.
        unsafe { (self.glib.tree_node_value)(node) }.cast()
    }

    fn insert_new(&mut self, start: u64, count: u64) -> Pointer {
        // SAFETY: `g_malloc` takes any size; it aborts if there is no memory.
        let key = unsafe { (self.glib.malloc)(size_of::<u64>()) }.cast::<u64>();
        // SAFETY: there is room for a key, aligned for any type.
        unsafe { key.write(start) };
        // SAFETY: `g_malloc` takes any size; it aborts if there is no memory.
        let range = unsafe { (self.glib.malloc)(size_of::<Range>()) }.cast::<Range>();
        // SAFETY: there is room for a range, aligned for any type.
        unsafe { range.write(Range { start, count }) };
        // SAFETY: the tree takes over both, and frees them with `g_free`.
        unsafe { (self.glib.tree_insert_node)(self.tree, key.cast(), range.cast()) }
    }

    fn remove(&mut self, start: u64) {
        // SAFETY: the key is only compared; other nodes stay where they are.
        unsafe { (self.glib.tree_remove)(self.tree, key(&start)) };
    }

    fn upper_bound(&self, start: u64) -> Pointer {
        // SAFETY: the key is only compared.
        unsafe { (self.glib.tree_upper_bound)(self.tree, key(&start)) }
    }

    fn last(&self) -> Pointer {
        // SAFETY: the tree lives as long as `self`.
        unsafe { (self.glib.tree_node_last)(self.tree) }
    }

    fn next(&self, node: Pointer) -> Pointer {
        // SAFETY: callers have the node from the tree and have not removed it.
        unsafe { (self.glib.tree_node_next)(node) }
    }

    fn previous(&self, node: Pointer) -> Pointer {
        // SAFETY: callers have the node from the tree and have not removed it.
        unsafe { (self.glib.tree_node_previous)(node) }
    }
}

impl Drop for GTreeSet {
    fn drop(&mut self) {
        // SAFETY: the tree is no longer used.
        unsafe { (self.glib.tree_destroy)(self.tree) };
    }
}

const fn key(start: &u64) -> *const c_void {
    std::ptr::from_ref(start).cast()
}

/// Compares two keys.
unsafe extern "C" fn compare(a: *const c_void, b: *const c_void, _data: Pointer) -> c_int {
    // SAFETY: all keys point to numbers: those that `insert_new` wrote, and those looked up.
    let a = unsafe { a.cast::<u64>().read() };
    // SAFETY: as above.
    let b = unsafe { b.cast::<u64>().read() };
    match a.cmp(&b) {
        Ordering::Less => -1,
        Ordering::Equal => 0,
        Ordering::Greater => 1,
    }
}
