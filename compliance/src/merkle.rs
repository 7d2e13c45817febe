//! The Merkle tree over the hashes of a stream (RFC 6962, section 2.1; the entry of a leaf is the 32 bytes of a
//! record's hash): what a checkpoint signs, and what one record is proved with.

use base64::{Engine as _, prelude::BASE64_STANDARD};
use sha2::{Digest, Sha256};

use crate::chain::Hash;

/// A tree that only grows: the roots of its whole subtrees, the largest first.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Frontier {
    size: u64,
    /// One for each bit that is set in `size`, the highest first.
    whole: Vec<Hash>,
}

impl Frontier {
    /// How many leaves.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// Adds a leaf.
    pub fn push(&mut self, entry: Hash) {
        let mut node = leaf(entry);
        let mut size = self.size;
        while size & 1 == 1 {
            // A set bit has its subtree.
            if let Some(left) = self.whole.pop() {
                node = parent(left, node);
            }
            size >>= 1;
        }
        self.whole.push(node);
        self.size += 1;
    }

    /// The root; of an empty tree the hash of nothing.
    #[must_use]
    pub fn root(&self) -> Hash {
        let mut from_right = self.whole.iter().rev().copied();
        match from_right.next() {
            Some(last) => from_right.fold(last, |right, left| parent(left, right)),
            None => Hash(Sha256::digest([]).into()),
        }
    }

    /// Size, a colon, and the hashes in base64.
    #[must_use]
    pub fn to_text(&self) -> String {
        let hashes: Vec<u8> = self.whole.iter().flat_map(|hash| hash.0).collect();
        format!("{}:{}", self.size, BASE64_STANDARD.encode(hashes))
    }

    /// What [`Self::to_text`] has written; `None` for any other text.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (size, hashes) = text.split_once(':')?;
        let size: u64 = size.parse().ok()?;
        let hashes = BASE64_STANDARD.decode(hashes).ok()?;
        let whole: Vec<Hash> =
            hashes.chunks(32).map(|hash| hash.try_into().map(Hash).ok()).collect::<Option<_>>()?;
        let this = Self { size, whole };
        let is_whole = u32::try_from(this.whole.len()) == Ok(size.count_ones());
        (is_whole && this.to_text() == text).then_some(this)
    }

    /// The path from the record `seq` to the root of the first `size` records, when this is the tree before
    /// the record numbered `size() + 1` and `entries` are the records from there (RFC 6962, 2.1.1).
    /// `None` when the record or the size is not among them.
    #[must_use]
    pub fn inclusion(&self, entries: &[Hash], seq: u64, size: u64) -> Option<Vec<Hash>> {
        let held = self.size + u64::try_from(entries.len()).ok()?;
        if seq <= self.size || seq > size || size > held {
            return None;
        }
        let mut path = Vec::new();
        let (mut from, mut to, index) = (0, size, seq - 1);
        while to - from > 1 {
            let middle = from + split(to - from);
            if index < middle {
                path.push(self.node(entries, middle, to)?);
                to = middle;
            } else {
                path.push(self.node(entries, from, middle)?);
                from = middle;
            }
        }
        path.reverse();
        Some(path)
    }

    /// The root of the leaves `from..to`, a subtree as RFC 6962 splits it.
    fn node(&self, entries: &[Hash], from: u64, to: u64) -> Option<Hash> {
        if to <= self.size {
            return self.whole_node(from, to);
        }
        if to - from == 1 {
            return entries.get(usize::try_from(from - self.size).ok()?).copied().map(leaf);
        }
        let middle = from + split(to - from);
        Some(parent(self.node(entries, from, middle)?, self.node(entries, middle, to)?))
    }

    fn whole_node(&self, from: u64, to: u64) -> Option<Hash> {
        let mut at = 0;
        for (hash, bit) in
            self.whole.iter().zip((0..64).rev().filter(|bit| self.size >> bit & 1 == 1))
        {
            let width = 1 << bit;
            if (at, at + width) == (from, to) {
                return Some(*hash);
            }
            at += width;
        }
        None
    }
}

/// Whether `path` leads from the record `seq` with this hash to the root of `size` records (RFC 9162, 2.1.3.2).
#[must_use]
pub fn is_included(entry: Hash, seq: u64, size: u64, path: &[Hash], root: Hash) -> bool {
    let Some(mut index) = seq.checked_sub(1).filter(|_| seq <= size) else { return false };
    let (mut last, mut node) = (size - 1, leaf(entry));
    for sibling in path {
        if last == 0 {
            return false;
        }
        if index & 1 == 1 || index == last {
            node = parent(*sibling, node);
            while index & 1 == 0 && index != 0 {
                index >>= 1;
                last >>= 1;
            }
        } else {
            node = parent(node, *sibling);
        }
        index >>= 1;
        last >>= 1;
    }
    last == 0 && node == root
}

/// The largest power of two below `width`, which is at least 2.
fn split(width: u64) -> u64 {
    1 << (u64::BITS - 1 - (width - 1).leading_zeros())
}

fn leaf(entry: Hash) -> Hash {
    let mut hash = Sha256::new_with_prefix([0]);
    hash.update(entry.0);
    Hash(hash.finalize().into())
}

fn parent(left: Hash, right: Hash) -> Hash {
    let mut hash = Sha256::new_with_prefix([1]);
    hash.update(left.0);
    hash.update(right.0);
    Hash(hash.finalize().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(number: u64) -> Hash {
        Hash(Sha256::digest(number.to_be_bytes()).into())
    }

    fn tree(entries: &[Hash]) -> Frontier {
        let mut tree = Frontier::default();
        entries.iter().for_each(|entry| tree.push(*entry));
        tree
    }

    /// The definition of RFC 6962, 2.1, word by word.
    fn defined(entries: &[Hash]) -> Hash {
        match entries {
            [] => Hash(Sha256::digest([]).into()),
            [one] => leaf(*one),
            many => {
                let mut middle = 1;
                while middle * 2 < many.len() {
                    middle *= 2;
                }
                parent(defined(&many[..middle]), defined(&many[middle..]))
            }
        }
    }

    #[test]
    fn a_growing_tree_has_the_root_that_rfc_6962_defines() {
        let entries: Vec<Hash> = (0..130).map(entry).collect();

        for size in 0..=entries.len() {
            assert_eq!(tree(&entries[..size]).root(), defined(&entries[..size]), "{size}");
        }
    }

    #[test]
    fn the_roots_of_the_reference_implementation() {
        // Certificate Transparency's test data have entries of other lengths; of the eight only the empty
        // tree's root can be given here, and is the hash of nothing.
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

        assert_eq!(Frontier::default().root().to_string(), empty);
    }

    #[test]
    fn every_record_is_proved_from_any_beginning_and_no_other_is() {
        let entries: Vec<Hash> = (0..40).map(entry).collect();
        for start in [0, 1, 2, 3, 7, 8, 13, 21] {
            let before = tree(&entries[..start]);
            for size in start + 1..=entries.len() {
                let root = defined(&entries[..size]);
                for seq in start + 1..=size {
                    let (seq64, size64) = (seq as u64, size as u64);
                    let path = before.inclusion(&entries[start..], seq64, size64).unwrap();

                    assert!(
                        is_included(entries[seq - 1], seq64, size64, &path, root),
                        "{start} {seq} {size}"
                    );
                    assert!(!is_included(entry(99), seq64, size64, &path, root));
                    assert!(
                        !is_included(entries[seq - 1], seq64 % size64 + 1, size64, &path, root)
                            || size == 1
                    );
                    let mut longer = path.clone();
                    longer.push(root);
                    assert!(!is_included(entries[seq - 1], seq64, size64, &longer, root));
                    if let Some((_, shorter)) = path.split_last() {
                        assert!(!is_included(entries[seq - 1], seq64, size64, shorter, root));
                    }
                }
            }
            assert_eq!(before.inclusion(&entries[start..], start as u64, 40), None);
            assert_eq!(before.inclusion(&entries[start..], 41, 41), None);
        }
    }

    #[test]
    fn a_tree_goes_on_from_its_text() {
        let entries: Vec<Hash> = (0..70).map(entry).collect();
        for size in 0..=entries.len() {
            let before = tree(&entries[..size]);

            let mut read = Frontier::parse(&before.to_text()).unwrap();

            assert_eq!(read, before);
            entries[size..].iter().for_each(|entry| read.push(*entry));
            assert_eq!(read.root(), defined(&entries));
        }
        for text in ["", "1", "1:", "3:AAAA", "01:", "x:", "0:AA=="] {
            assert_eq!(Frontier::parse(text), None, "{text}");
        }
    }
}
