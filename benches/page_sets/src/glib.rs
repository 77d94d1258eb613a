//! The functions of glib that a tree of ranges needs, loaded when first used, so that building this
//! package does not need glib and `G_SLICE` can be set in time.

#![expect(unsafe_code, reason = "glib is called through pointers to its functions")]

use std::ffi::{c_int, c_void};
use std::sync::OnceLock;

use anyhow::{Context, Result, anyhow};
use libloading::Library;

const LIBRARY: &str = "libglib-2.0.so.0";

pub(crate) type Pointer = *mut c_void;
pub(crate) type Compare = unsafe extern "C" fn(*const c_void, *const c_void, Pointer) -> c_int;
pub(crate) type Destroy = unsafe extern "C" fn(Pointer);

/// glib's functions, by their names without `g_`.
pub(crate) struct Glib {
    pub(crate) malloc: unsafe extern "C" fn(usize) -> Pointer,
    pub(crate) free: Destroy,
    pub(crate) tree_new_full:
        unsafe extern "C" fn(Compare, Pointer, Option<Destroy>, Option<Destroy>) -> Pointer,
    pub(crate) tree_destroy: unsafe extern "C" fn(Pointer),
    pub(crate) tree_insert_node: unsafe extern "C" fn(Pointer, Pointer, Pointer) -> Pointer,
    pub(crate) tree_remove: unsafe extern "C" fn(Pointer, *const c_void) -> c_int,
    pub(crate) tree_upper_bound: unsafe extern "C" fn(Pointer, *const c_void) -> Pointer,
    pub(crate) tree_node_last: unsafe extern "C" fn(Pointer) -> Pointer,
    pub(crate) tree_node_next: unsafe extern "C" fn(Pointer) -> Pointer,
    pub(crate) tree_node_previous: unsafe extern "C" fn(Pointer) -> Pointer,
    pub(crate) tree_node_value: unsafe extern "C" fn(Pointer) -> Pointer,
    /// The library that contains the functions.
    _library: Library,
}

impl Glib {
    /// glib, loaded once.
    pub(crate) fn get() -> Result<&'static Self> {
        static GLIB: OnceLock<Result<Glib, String>> = OnceLock::new();
        GLIB.get_or_init(|| Self::load().map_err(|error| format!("{error:#}")))
            .as_ref()
            .map_err(|error| anyhow!("{error}: install the Debian package libglib2.0-0 or libglib2.0-0t64, or leave out the peers gtree and gtree-malloc"))
    }

    fn load() -> Result<Self> {
        // SAFETY: glib's initialisers only set up glib.
        let library = unsafe { Library::new(LIBRARY) };
        let library = library.with_context(|| format!("cannot load {LIBRARY}"))?;
        // Each type is that of the function's declaration in glib's gmem.h or gtree.h. Tree nodes
        // and bounds exist since 2.68.
        Ok(Self {
            malloc: symbol(&library, "g_malloc")?,
            free: symbol(&library, "g_free")?,
            tree_new_full: symbol(&library, "g_tree_new_full")?,
            tree_destroy: symbol(&library, "g_tree_destroy")?,
            tree_insert_node: symbol(&library, "g_tree_insert_node")?,
            tree_remove: symbol(&library, "g_tree_remove")?,
            tree_upper_bound: symbol(&library, "g_tree_upper_bound")?,
            tree_node_last: symbol(&library, "g_tree_node_last")?,
            tree_node_next: symbol(&library, "g_tree_node_next")?,
            tree_node_previous: symbol(&library, "g_tree_node_previous")?,
            tree_node_value: symbol(&library, "g_tree_node_value")?,
            _library: library,
        })
    }
}

fn symbol<F: Copy>(library: &Library, name: &str) -> Result<F> {
    // SAFETY: callers only ask for the fields of `Glib`, which have the types that glib declares.
    let symbol = unsafe { library.get::<F>(name) };
    Ok(*symbol.with_context(|| format!("{LIBRARY} has no {name}: it is older than 2.68"))?)
}
