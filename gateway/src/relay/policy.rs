//! What may wait, be sent again, be asked about or be taken back: one table, shown in
//! ARCHITECTURE.md.
//!
//! PIN and MAC operations are not in it: the store takes payments and reversals, and has no type for
//! anything else. A MAC is never stored: it is made for each sending.

/// What a biller promises and an operator allows for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// A payment of which nothing was sent may wait.
    pub store: bool,
    /// Also with its PIN block, for minutes.
    pub store_pin: bool,
    /// It recognises a reference that it has seen and answers as it did then.
    pub deduplicates: bool,
    /// It answers what became of a reference.
    pub enquiry: bool,
    /// It takes a payment back, also one that never arrived.
    pub reversal: bool,
}

/// What is done about a payment that may have arrived and has no final answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Remedy {
    /// The same bytes under the same reference.
    Resend,
    /// Ask what became of it.
    Enquire,
    /// Its client is told that it failed, and it is taken back.
    Reverse,
    /// A person finds out.
    Hold,
}

impl Route {
    /// Whether a payment waits when nothing of it was sent.
    #[must_use]
    pub fn may_wait(self, has_pin: bool) -> bool {
        self.store && (!has_pin || self.store_pin)
    }

    /// Whether its order, without its PIN block, is kept until its end: to be sent later, asked about
    /// or taken back.
    #[must_use]
    pub fn keeps_order(self, has_pin: bool) -> bool {
        self.may_wait(has_pin) || self.enquiry || self.reversal
    }

    /// What is done when it may have arrived. `may_resend`: what is stored is enough to send it, and the
    /// biller has not refused it since.
    #[must_use]
    pub fn remedy(self, may_resend: bool) -> Remedy {
        match self {
            Self { deduplicates: true, .. } if may_resend => Remedy::Resend,
            Self { enquiry: true, .. } => Remedy::Enquire,
            Self { reversal: true, .. } => Remedy::Reverse,
            Self { .. } => Remedy::Hold,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOTHING: Route = Route {
        store: false,
        store_pin: false,
        deduplicates: false,
        enquiry: false,
        reversal: false,
    };

    /// The document is the code: each row of the table stands in ARCHITECTURE.md.
    #[test]
    fn architecture_md_shows_this_table() {
        let document = include_str!("../../../ARCHITECTURE.md");
        let promises = [
            ("deduplicates", Route { deduplicates: true, ..NOTHING }),
            ("answers enquiries", Route { enquiry: true, ..NOTHING }),
            ("takes reversals", Route { reversal: true, ..NOTHING }),
            ("none of these", NOTHING),
        ];
        let permissions = [
            ("may wait", Route { store: true, store_pin: true, ..NOTHING }, false),
            ("with PIN, `store_pin`", Route { store: true, store_pin: true, ..NOTHING }, true),
            ("with PIN", Route { store: true, ..NOTHING }, true),
            ("may not wait", NOTHING, false),
        ];

        for (payment, permitted, has_pin) in permissions {
            for (biller, promised) in promises {
                let Route { store, store_pin, .. } = permitted;
                let route = Route { store, store_pin, ..promised };
                let waits = route.may_wait(has_pin);
                let unsent = if waits { "waits" } else { "503, taken back" };
                let unknown = match route.remedy(waits) {
                    Remedy::Resend => "same reference again",
                    Remedy::Enquire => "enquiry",
                    Remedy::Reverse => "FAILED (68), reversal",
                    Remedy::Hold => "HELD",
                };
                let row = format!("| {payment} | {biller} | {unsent} | {unknown} |");

                assert!(document.contains(&row), "{row}");
            }
        }
    }

    #[test]
    fn a_refusal_in_doubt_is_never_sent_again() {
        let route = Route { deduplicates: true, enquiry: true, ..NOTHING };

        assert_eq!(route.remedy(true), Remedy::Resend);
        assert_eq!(route.remedy(false), Remedy::Enquire);
        assert_eq!(Route { enquiry: false, ..route }.remedy(false), Remedy::Hold);
    }

    #[test]
    fn an_order_is_kept_only_where_something_can_be_done_with_it() {
        assert!(!NOTHING.keeps_order(false));
        assert!(!Route { deduplicates: true, store: true, ..NOTHING }.keeps_order(true));
        assert!(Route { reversal: true, ..NOTHING }.keeps_order(true));
    }
}
