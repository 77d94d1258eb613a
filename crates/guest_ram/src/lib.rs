//! guest_ram
