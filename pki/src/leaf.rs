//! What an end-entity certificate is for: names a server has, or the URI a client is known by.

use std::net::IpAddr;

use jiff::{SignedDuration, Timestamp};
use rcgen::{
    CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose, SanType,
    SerialNumber, string::Ia5String,
};

/// One of three kinds, by its constructor; valid for 30 days from now unless told otherwise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leaf {
    server: Option<(Vec<String>, Vec<IpAddr>)>,
    uri: Option<String>,
    validity: Validity,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Validity {
    Days(u16),
    Between(Timestamp, Timestamp),
}

impl Leaf {
    /// A server under these names and addresses, at least one. Extended key usage serverAuth.
    #[must_use]
    pub fn server(
        dns: impl IntoIterator<Item = impl Into<String>>,
        addresses: impl IntoIterator<Item = IpAddr>,
    ) -> Self {
        let dns = dns.into_iter().map(Into::into).collect();
        let server = Some((dns, addresses.into_iter().collect()));
        Self { server, uri: None, validity: Validity::Days(DAYS) }
    }

    /// A client known by this URI, its only alternative name. Extended key usage clientAuth.
    #[must_use]
    pub fn client(uri: impl Into<String>) -> Self {
        Self { server: None, uri: Some(uri.into()), validity: Validity::Days(DAYS) }
    }

    /// A server that also speaks as a client: the names of both, both extended key usages.
    #[must_use]
    pub fn both(
        dns: impl IntoIterator<Item = impl Into<String>>,
        addresses: impl IntoIterator<Item = IpAddr>,
        uri: impl Into<String>,
    ) -> Self {
        Self { uri: Some(uri.into()), ..Self::server(dns, addresses) }
    }

    /// Ends this many days from now.
    #[must_use]
    pub fn lasting(self, days: u16) -> Self {
        Self { validity: Validity::Days(days), ..self }
    }

    /// Begins and ends at these times, whole seconds. For tests that need an expired certificate, or
    /// one that is not valid yet.
    #[must_use]
    pub fn between(self, not_before: Timestamp, not_after: Timestamp) -> Self {
        Self { validity: Validity::Between(not_before, not_after), ..self }
    }

    pub(crate) fn uri(&self) -> Option<&str> {
        self.uri.as_deref()
    }

    /// The certificate's parameters and its end, or the rule that it breaks.
    pub(crate) fn params(
        &self,
        name: &str,
        serial: &[u8],
        now: Timestamp,
    ) -> Result<(CertificateParams, Timestamp), &'static str> {
        let (not_before, not_after) = match self.validity {
            Validity::Days(0) => return Err("it must last at least one day"),
            Validity::Days(days) => (now - SKEW, now + self::days(days)),
            Validity::Between(not_before, not_after) => (not_before, not_after),
        };
        if not_before < Timestamp::UNIX_EPOCH || not_after <= not_before {
            return Err("it must end after it begins, and begin after 1970");
        }
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.serial_number = Some(SerialNumber::from_slice(serial));
        params.not_before = time(not_before);
        params.not_after = time(not_after);
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        if let Some((dns, addresses)) = &self.server {
            if dns.is_empty() && addresses.is_empty() {
                return Err("a server needs a DNS name or an IP address");
            }
            for name in dns {
                params.subject_alt_names.push(SanType::DnsName(dns_name(name)?));
            }
            let addresses = addresses.iter().copied().map(SanType::IpAddress);
            params.subject_alt_names.extend(addresses);
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
        }
        if let Some(uri) = &self.uri {
            params.subject_alt_names.push(SanType::URI(absolute_uri(uri)?));
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ClientAuth);
        }
        Ok((params, not_after))
    }
}

fn dns_name(text: &str) -> Result<Ia5String, &'static str> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-._*".contains(&byte);
    if text.is_empty() || text.len() > 253 || !text.bytes().all(fits) {
        return Err("a DNS name has 1 to 253 of a-z, 0-9, '-', '.', '_', '*'");
    }
    Ia5String::try_from(text).map_err(|_| "a DNS name is ASCII")
}

fn absolute_uri(text: &str) -> Result<Ia5String, &'static str> {
    let whole = text.split_once("://").is_some_and(|(scheme, rest)| {
        !scheme.is_empty() && !rest.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic())
    });
    if !whole || text.len() > 2048 {
        return Err("a client's URI reads scheme://authority/path, printable ASCII, no spaces");
    }
    Ia5String::try_from(text).map_err(|_| "a URI is ASCII")
}

/// For rcgen, whose time type converts from the system's.
pub(crate) fn time<T: From<std::time::SystemTime>>(at: Timestamp) -> T {
    std::time::SystemTime::from(at).into()
}

/// At most 179 years, so that it can be added to any present time.
pub(crate) const fn days(days: u16) -> SignedDuration {
    SignedDuration::from_hours(24 * days as i64)
}

/// A certificate begins a little before it is made: clocks of two machines differ.
pub(crate) const SKEW: SignedDuration = SignedDuration::from_mins(5);

const DAYS: u16 = 30;
