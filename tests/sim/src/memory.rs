//! The memory that host and guest share, and a guest that changes it while the host reads it.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::atomic::Ordering;

use page_range::{Gpa, Gpfn, PageCount, PageRange, PageRangeSet};
use vmbus::protocol::ring::{READ_INDEX, WRITE_INDEX};
use vmbus::ring::RingLayout;
use vmbus::{AccessError, GuestMemory};

use crate::dice::Dice;

const PAGE: usize = 4096;

/// One side's access to the memory. A page that nobody wrote to since it was discarded is zero.
#[derive(Clone, Debug)]
pub(crate) struct Ram {
    shared: Rc<Shared>,
    /// Whether the accesses are the host's, which a hostile guest waits for.
    is_host: bool,
}

#[derive(Debug, Default)]
struct Shared {
    pages: RefCell<Pages>,
    mischief: RefCell<Option<Mischief>>,
    tampered: Cell<bool>,
    /// The host has no rings here, or no longer has them.
    is_off_limits: Cell<bool>,
    /// The address of each index of the host's rings, and the size of that ring in bytes.
    indices: RefCell<Vec<(Gpa, u32)>>,
    /// The host has loaded an index that is not a position in its ring.
    saw_impossible_index: Cell<bool>,
}

#[derive(Debug, Default)]
struct Pages {
    /// All pages that exist.
    ram: PageRangeSet,
    /// The content of those that were written to.
    written: BTreeMap<u64, Box<[u8; PAGE]>>,
}

/// What another vCPU of the guest does just after the host has looked.
#[derive(Debug)]
pub(crate) struct Mischief {
    pub(crate) dice: Dice,
    /// Rewrites the bytes that the host has read.
    pub(crate) rewrites: bool,
    /// Moves the indices and other words that the host has loaded or stored.
    pub(crate) moves_words: bool,
}

impl Ram {
    /// Memory with these pages, for access by the guest.
    pub(crate) fn new(ram: PageRangeSet) -> Self {
        let shared = Rc::new(Shared::default());
        shared.pages.borrow_mut().ram = ram;
        Self { shared, is_host: false }
    }

    /// The same memory, for access by the host.
    pub(crate) fn of_host(&self) -> Self {
        Self { shared: Rc::clone(&self.shared), is_host: true }
    }

    /// The machine starts anew with these pages, all zero.
    pub(crate) fn restart(&self, ram: PageRangeSet) {
        *self.shared.pages.borrow_mut() = Pages { ram, written: BTreeMap::new() };
        self.set_mischief(None);
        self.take_tampered();
    }

    /// Whether the page exists.
    pub(crate) fn has(&self, page: Gpfn) -> bool {
        self.shared.pages.borrow().ram.contains(page)
    }

    /// Sets whether the host must leave the memory alone.
    pub(crate) fn set_off_limits(&self, is_off_limits: bool) {
        self.shared.is_off_limits.set(is_off_limits);
    }

    /// The host uses these rings from now on, or none.
    pub(crate) fn watch_rings(&self, rings: Option<&RingLayout>) {
        let rings = rings.into_iter().flat_map(|rings| [rings.incoming(), rings.outgoing()]);
        let indices = rings.flat_map(|pages| {
            let size = u32::try_from((pages.len() - 1) * PAGE).unwrap_or(u32::MAX);
            let words = [WRITE_INDEX, READ_INDEX].into_iter();
            words.filter_map(move |word| Some((pages[0].gpa().checked_add(word)?, size)))
        });
        *self.shared.indices.borrow_mut() = indices.collect();
        self.shared.saw_impossible_index.set(false);
    }

    /// Whether the host has loaded an index that is not a position in its ring since the last call.
    pub(crate) fn take_impossible_index(&self) -> bool {
        self.shared.saw_impossible_index.take()
    }

    /// Checks a word that the host has loaded, if it is an index. Both rings may have the same
    /// control page, so an index must be a position in one of them.
    fn check_index(&self, gpa: Gpa, value: u32) {
        if self.is_host {
            let indices = self.shared.indices.borrow();
            let mut sizes = indices.iter().filter(|(at, _)| *at == gpa).peekable();
            if sizes.peek().is_some()
                && sizes.all(|(_, size)| value >= *size || !value.is_multiple_of(8))
            {
                self.shared.saw_impossible_index.set(true);
            }
        }
    }

    /// Makes new memory accessible.
    pub(crate) fn add(&self, range: PageRange) {
        self.shared.pages.borrow_mut().ram.insert(range);
    }

    /// Makes memory inaccessible.
    pub(crate) fn remove(&self, range: PageRange) {
        self.shared.pages.borrow_mut().ram.remove(range);
        self.discard(range);
    }

    /// Gives memory back to the host; returns whether anybody had written to it.
    pub(crate) fn discard(&self, range: PageRange) -> bool {
        let mut pages = self.shared.pages.borrow_mut();
        let (start, end) = (range.start().get(), range.end().get());
        let written: Vec<u64> = pages.written.range(start..end).map(|(page, _)| *page).collect();
        for page in &written {
            pages.written.remove(page);
        }
        !written.is_empty()
    }

    pub(crate) fn set_mischief(&self, mischief: Option<Mischief>) {
        *self.shared.mischief.borrow_mut() = mischief;
    }

    /// Whether a word was changed under the host since the last call, so that the content of the
    /// rings no longer makes sense.
    pub(crate) fn take_tampered(&self) -> bool {
        self.shared.tampered.take()
    }

    /// Copies between memory and `buf`, page by page.
    fn copy(
        &self,
        gpa: Gpa,
        len: usize,
        mut each: impl FnMut(&mut Pages, u64, usize, std::ops::Range<usize>),
    ) -> Result<(), AccessError> {
        let is_allowed = !self.is_host || !self.shared.is_off_limits.get();
        assert!(is_allowed, "the host uses rings that it gave back");
        let error = AccessError { gpa, len };
        let mut pages = self.shared.pages.borrow_mut();
        let first = gpa.get() >> 12;
        let end = gpa.checked_add(len as u64).ok_or(error)?;
        let count = PageCount::new((end.get().div_ceil(PAGE as u64)).saturating_sub(first).max(1));
        let start = Gpfn::new(first).ok_or(error)?;
        let range = PageRange::new(start, count).map_err(|_| error)?;
        if !pages.ram.contains_range(range) {
            return Err(error);
        }
        let mut done = 0;
        let mut offset = usize::try_from(gpa.get() & 0xfff).unwrap_or(0);
        let mut page = first;
        while done < len {
            let part = (len - done).min(PAGE - offset);
            each(&mut pages, page, offset, done..done + part);
            (done, offset, page) = (done + part, 0, page + 1);
        }
        Ok(())
    }

    fn put(&self, gpa: Gpa, buf: &[u8]) -> Result<(), AccessError> {
        self.copy(gpa, buf.len(), |pages, page, offset, part| {
            let bytes = pages.written.entry(page).or_insert_with(|| Box::new([0; PAGE]));
            bytes[offset..offset + part.len()].copy_from_slice(&buf[part]);
        })
    }

    /// The guest changes what the host has just looked at.
    fn after_host_read(&self, gpa: Gpa, len: usize) {
        if !self.is_host {
            return;
        }
        let mut mischief = self.shared.mischief.borrow_mut();
        let Some(Mischief { dice, rewrites: true, .. }) = &mut *mischief else { return };
        if len < 8 || dice.one_in(4) {
            return;
        }
        // Other ranges, types and lengths, which a second read would use.
        let word = dice.pick(&[0, u64::MAX, 0x1_0000_0000_0010, 7 | 40 << 16, 1 << 40 | 3]);
        let bytes: Vec<u8> = word.to_le_bytes().into_iter().cycle().take(len).collect();
        let _ = self.put(gpa, &bytes);
    }

    fn after_host_word(&self, gpa: Gpa, value: u32) {
        if !self.is_host {
            return;
        }
        let mut mischief = self.shared.mischief.borrow_mut();
        let Some(Mischief { dice, moves_words: true, .. }) = &mut *mischief else { return };
        if !dice.one_in(6) {
            return;
        }
        let other = match dice.below(6) {
            0 => value.wrapping_add(8),
            1 => value.wrapping_sub(8),
            2 => value.wrapping_add(4),
            3 => 0,
            4 => u32::MAX,
            _ => u32::try_from(dice.below(5 << 12) & !7).unwrap_or(0),
        };
        self.shared.tampered.set(true);
        let _ = self.put(gpa, &other.to_le_bytes());
    }
}

impl GuestMemory for Ram {
    fn read(&self, gpa: Gpa, buf: &mut [u8]) -> Result<(), AccessError> {
        let len = buf.len();
        self.copy(gpa, len, |pages, page, offset, part| {
            let to = &mut buf[part];
            match pages.written.get(&page) {
                Some(bytes) => to.copy_from_slice(&bytes[offset..offset + to.len()]),
                None => to.fill(0),
            }
        })?;
        self.after_host_read(gpa, len);
        Ok(())
    }

    fn write(&self, gpa: Gpa, buf: &[u8]) -> Result<(), AccessError> {
        self.put(gpa, buf)
    }

    fn load_u32(&self, gpa: Gpa, _: Ordering) -> Result<u32, AccessError> {
        assert!(gpa.get().is_multiple_of(4), "word at {gpa} is not aligned");
        let mut word = [0; 4];
        self.copy(gpa, 4, |pages, page, offset, _| {
            if let Some(bytes) = pages.written.get(&page) {
                word.copy_from_slice(&bytes[offset..offset + 4]);
            }
        })?;
        let value = u32::from_le_bytes(word);
        self.check_index(gpa, value);
        self.after_host_word(gpa, value);
        Ok(value)
    }

    fn store_u32(&self, gpa: Gpa, value: u32, _: Ordering) -> Result<(), AccessError> {
        assert!(gpa.get().is_multiple_of(4), "word at {gpa} is not aligned");
        self.put(gpa, &value.to_le_bytes())?;
        self.after_host_word(gpa, value);
        Ok(())
    }
}
