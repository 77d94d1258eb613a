//! The answer to `x-query-integration-services`: what the guest's operating system has agreed to do.

use serde::{Deserialize, Serialize};

/// The answer to `x-query-integration-services`.
///
/// Fields may be added. Clients treat a missing field as absent.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct IntegrationServicesInfo {
    /// Whether the guest's kernel answers, in Hyper-V's words: `OK`, `No Contact` if it never has, or
    /// `Lost Communication`.
    pub heartbeat: String,
    /// The version of the shutdown service; absent if the guest cannot be asked to shut down.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shutdown: Option<String>,
    /// The version of the time synchronisation service; absent if the guest's clock cannot be set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time_sync: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::types::INTEGRATION_SERVICES;

    #[test]
    fn the_schema_has_every_field() {
        let full = IntegrationServicesInfo {
            heartbeat: "OK".to_owned(),
            shutdown: Some("3.2".to_owned()),
            time_sync: Some("4.0".to_owned()),
        };
        let full = serde_json::to_value(full).unwrap();
        INTEGRATION_SERVICES.assert_names(&full, &IntegrationServicesInfo::default());
    }
}
