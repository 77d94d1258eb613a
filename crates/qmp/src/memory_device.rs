//! The answer to `query-memory-devices`.

use serde::{Deserialize, Serialize};

/// A device that can give the guest memory beyond its boot memory, as `query-memory-devices` lists
/// it: `{"type": "hv-balloon", "data": {...}}`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", content = "data", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum MemoryDevice {
    /// The Dynamic Memory device.
    HvBalloon(HvBalloonDevice),
}

/// QEMU's `HvBalloonDeviceInfo`, and in `size` a figure that QEMU does not report. Sizes are in
/// bytes.
///
/// The type in `qapi-qmp` has no `size`, hence this one; clients of that crate skip the field.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct HvBalloonDevice {
    /// The device's id, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The guest-physical address where added memory begins; absent if none can be added.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memaddr: Option<u64>,
    /// The most memory the device can add; 0 if none.
    pub max_size: u64,
    /// What backs added memory; absent if none can be added.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memdev: Option<String>,
    /// The memory the device has added, ballooned or not. An extension: QEMU's hv-balloon does not
    /// report it; its virtio-mem does, under this name.
    #[serde(default)]
    pub size: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::qapi;
    use serde_json::json;

    fn device() -> HvBalloonDevice {
        HvBalloonDevice {
            id: Some("balloon0".to_owned()),
            memaddr: Some(1 << 32),
            max_size: 3 << 30,
            memdev: Some("/objects/mem1".to_owned()),
            size: 1 << 30,
        }
    }

    #[test]
    fn the_json_is_that_of_qemu_and_one_field() {
        let value = serde_json::to_value(MemoryDevice::HvBalloon(device())).unwrap();
        let expected = json!({
            "type": "hv-balloon",
            "data": {
                "id": "balloon0", "memaddr": 1_u64 << 32, "max-size": 3_u64 << 30,
                "memdev": "/objects/mem1", "size": 1 << 30,
            },
        });
        assert_eq!(value, expected);
        let back: MemoryDevice = serde_json::from_value(value).unwrap();
        assert_eq!(back, MemoryDevice::HvBalloon(device()));
    }

    #[test]
    fn the_schema_names_all_members_and_which_of_them_may_be_missing() {
        let full = serde_json::to_value(device()).unwrap();
        crate::schema::types::HV_BALLOON.assert_names(&full, &HvBalloonDevice::default());
    }

    #[test]
    fn clients_of_qemu_understand_it() {
        for device in [device(), HvBalloonDevice::default()] {
            let value = serde_json::to_value(MemoryDevice::HvBalloon(device.clone())).unwrap();
            let qapi::MemoryDeviceInfo::hv_balloon(theirs) = serde_json::from_value(value).unwrap()
            else {
                panic!("another kind of device");
            };
            let theirs = theirs.data;
            assert_eq!((theirs.id, theirs.memaddr), (device.id, device.memaddr));
            assert_eq!((theirs.memdev, theirs.max_size), (device.memdev, device.max_size));
        }
    }
}
