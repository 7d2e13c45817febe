//! The controls, as they were when this program was built: see `compliance/controls/README.md`.

/// A name and the text, TOML, of each standard.
pub const CONTROLS: [(&str, &str); 2] = [
    ("pci-dss-4.0.1", include_str!("../controls/pci-dss-4.0.1.toml")),
    ("pci-pin-3.1", include_str!("../controls/pci-pin-3.1.toml")),
];
