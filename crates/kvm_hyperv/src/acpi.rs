//! The ACPI device through which a guest finds VMBus.

use acpi_tables::aml::{self, Device, Interrupt, Name, Path, ResourceTemplate, Scope};
use acpi_tables::{Aml, AmlSink};

/// The AML of `\_SB.VMBS`, to be appended to the definition block of a DSDT or an SSDT, whatever
/// made the rest of it.
///
/// The guest's drivers look for the hardware ID `VMBus`. `_CRS` lists the interrupt `gsi`, which is
/// never raised: Linux wants a list (Linux `vmbus_drv.c`), Windows an interrupt in it. Use a
/// GSI that nothing else has.
///
/// Do not define `\_S4`: Linux's `hv_balloon` ignores all requests where hibernation is possible
/// (Linux `hv_balloon.c`).
#[must_use]
pub fn vmbus_device(gsi: u32) -> Vec<u8> {
    let hid = Name::new(Path::new("_HID"), &"VMBus");
    let uid = Name::new(Path::new("_UID"), &aml::ZERO);
    let sta = Name::new(Path::new("_STA"), &0xf_u8);
    let interrupt = Interrupt::new(true, true, false, false, gsi);
    let resources = ResourceTemplate::new(vec![&interrupt]);
    let crs = Name::new(Path::new("_CRS"), &resources);
    let device = Device::new(Path::new("VMBS"), vec![&hid, &uid, &sta, &crs]);
    let mut code = Code(Vec::new());
    Scope::new(Path::new("_SB_"), vec![&device]).to_aml_bytes(&mut code);
    code.0
}

struct Code(Vec<u8>);

impl AmlSink for Code {
    fn byte(&mut self, byte: u8) {
        self.0.push(byte);
    }
}

#[cfg(test)]
mod tests {
    use super::vmbus_device;

    #[test]
    fn the_device_has_its_id_and_the_interrupt_in_its_list() {
        let code = vmbus_device(0x1234_5678);
        let has = |part: &[u8]| code.windows(part.len()).any(|window| window == part);
        assert!(has(b"_HID\x0dVMBus\0"));
        // Extended interrupt descriptor (ACPI 6.5, 6.4.3.6): one number, at the end.
        assert!(has(b"\x89\x06\x00\x03\x01\x78\x56\x34\x12"), "{code:x?}");
    }
}
