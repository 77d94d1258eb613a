//! A guest that answers at once: no kernel, only the driver's part of the protocol.

use anyhow::{Context, Result, ensure};
use dynmem_protocol::{
    BalloonResponse, Capabilities, CapabilitiesReport, HostBody, HostMessage, RangeList,
    UnballoonResponse, Version, VersionRequest,
};
use guest_model::vmbus::{GuestRings, Received};
use page_range::{Gpfn, PageCount, PageRange};

use crate::memory::BusMemory;

/// The rings of Linux's driver: each has a control page and 16 KiB of data.
const RING_PAGES: std::ops::Range<u64> = 16..26;

/// The number of pages in the guest-to-host ring, including its control page.
pub(crate) const DOWNSTREAM_OFFSET: usize = 5;

/// The pages of the rings, in the guest's memory.
pub(crate) fn ring_pages() -> Vec<Gpfn> {
    RING_PAGES.filter_map(Gpfn::new).collect()
}

/// A Dynamic Memory driver.
pub(crate) struct Guest {
    rings: GuestRings<BusMemory>,
    /// The ranges that it gives when asked, in this order.
    pieces: Vec<PageRange>,
    /// How many of them it has given since it last had them all.
    given: usize,
    /// Pages still to give for the current request.
    asked: PageCount,
    returned: PageCount,
    sent: u64,
    received: Received,
    list: RangeList,
    /// The next message, if it has any bytes.
    outgoing: Vec<u8>,
    transaction_id: u32,
}

impl Guest {
    /// A driver that has just opened the channel.
    pub(crate) fn new(ram: BusMemory, pieces: Vec<PageRange>) -> Self {
        let mut outgoing = Vec::new();
        VersionRequest { version: Version::V2_0, is_last_attempt: true }
            .emit_into(1, &mut outgoing);
        Self {
            rings: GuestRings::new(ram, &ring_pages(), DOWNSTREAM_OFFSET),
            pieces,
            given: 0,
            asked: PageCount::ZERO,
            returned: PageCount::ZERO,
            sent: 0,
            received: Received::new(),
            list: RangeList::new(),
            outgoing,
            transaction_id: 1,
        }
    }

    /// Pages that came back.
    pub(crate) const fn returned(&self) -> PageCount {
        self.returned
    }

    /// Messages it has sent.
    pub(crate) const fn sent(&self) -> u64 {
        self.sent
    }

    /// Does everything it can before the host must act; returns whether it sent anything.
    pub(crate) fn run(&mut self) -> Result<bool> {
        let mut has_sent = false;
        loop {
            if !self.outgoing.is_empty() {
                if self.rings.send(&self.outgoing, 0).is_err() {
                    return Ok(has_sent);
                }
                self.outgoing.clear();
                self.sent += 1;
                has_sent = true;
            }
            if !self.asked.is_zero() {
                self.answer()?;
            } else if self.rings.receive_into(&mut self.received) {
                self.on_message()?;
            } else {
                return Ok(has_sent);
            }
        }
    }

    /// Gives as many pieces as fit into a message.
    fn answer(&mut self) -> Result<()> {
        self.list.clear();
        while !self.asked.is_zero() && !self.list.is_full() {
            let piece = self.pieces.get(self.given).context("asked for more than there is")?;
            self.given += 1;
            ensure!(piece.count() <= self.asked, "asked for a part of a piece");
            self.list.push(*piece)?;
            self.asked = self.asked.saturating_sub(piece.count());
        }
        self.transaction_id += 1;
        let more = !self.asked.is_zero();
        BalloonResponse::emit_into(self.transaction_id, more, &self.list, &mut self.outgoing);
        Ok(())
    }

    fn on_message(&mut self) -> Result<()> {
        let message = HostMessage::parse(&self.received.payload)?;
        match message.body {
            HostBody::VersionResponse(response) => {
                ensure!(response.is_accepted, "the host refuses the version");
                CapabilitiesReport {
                    capabilities: Capabilities::BALLOON.union(Capabilities::HOT_ADD),
                    minimum_pages: PageCount::ZERO,
                    highest_page: u64::MAX,
                }
                .emit_into(2, &mut self.outgoing);
            }
            HostBody::BalloonRequest(request) => self.asked = request.pages,
            HostBody::UnballoonRequest(request) => {
                for word in request.ranges.iter() {
                    self.returned = self.returned.saturating_add(word.range()?.count());
                }
                if !request.more_pages {
                    // This bench's host always returns everything at once.
                    self.given = 0;
                    UnballoonResponse.emit_into(message.transaction_id, &mut self.outgoing);
                }
            }
            _ => {}
        }
        Ok(())
    }
}
