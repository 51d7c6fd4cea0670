//! Merkle trees as RFC 6962, section 2.1, has them.

use sendtrail_schemas::secret::{hex, unhex};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::Error;

/// A SHA-256.
pub type Hash = [u8; 32];

/// The hash of a leaf of these parts, one after the other.
pub fn leaf(parts: &[&[u8]]) -> Hash {
    let mut hash = Sha256::new_with_prefix([0x00]);
    parts.iter().for_each(|part| hash.update(part));
    hash.finalize().into()
}

fn node(left: &Hash, right: &Hash) -> Hash {
    Sha256::new_with_prefix([0x01]).chain_update(left).chain_update(right).finalize().into()
}

/// The root over hashes of leaves, in their order; of none, the hash of nothing.
pub fn root(mut leaves: Vec<Hash>) -> Hash {
    // Pairs from the left, and what is left over goes up as it is: the same tree as the RFC's recursive split.
    while leaves.len() > 1 {
        let mut up = 0;
        for at in (0..leaves.len()).step_by(2) {
            leaves[up] = match leaves.get(at + 1) {
                Some(right) => node(&leaves[at], right),
                None => leaves[at],
            };
            up += 1;
        }
        leaves.truncate(up);
    }
    leaves.first().copied().unwrap_or_else(|| Sha256::digest([]).into())
}

/// A tree that grows leaf by leaf and keeps no more than a hash for each size of a whole subtree.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "Kept", try_from = "Kept")]
pub struct Tree {
    leaves: u64,
    /// Roots of whole subtrees, the largest first: one for each bit of `leaves`.
    peaks: Vec<Hash>,
}

#[derive(Serialize, Deserialize)]
struct Kept {
    leaves: u64,
    peaks: Vec<String>,
}

impl From<Tree> for Kept {
    fn from(tree: Tree) -> Self {
        Self { leaves: tree.leaves, peaks: tree.peaks.iter().map(|peak| hex(peak)).collect() }
    }
}

impl TryFrom<Kept> for Tree {
    type Error = Error;

    fn try_from(kept: Kept) -> Result<Self, Error> {
        let peaks: Option<Vec<Hash>> = kept.peaks.iter().map(|peak| unhex(peak)).collect();
        let peaks = peaks.filter(|peaks| peaks.len() == kept.leaves.count_ones() as usize);
        let peaks = peaks.ok_or_else(|| Error::Malformed("a tree has a hash for each bit of its size".into()))?;
        Ok(Self { leaves: kept.leaves, peaks })
    }
}

impl Tree {
    /// Adds the hash of the next leaf.
    pub fn push(&mut self, mut leaf: Hash) {
        for _ in 0..self.leaves.trailing_ones() {
            if let Some(left) = self.peaks.pop() {
                leaf = node(&left, &leaf);
            }
        }
        self.peaks.push(leaf);
        self.leaves += 1;
    }

    /// How many leaves it has.
    pub fn len(&self) -> u64 {
        self.leaves
    }

    /// Whether it has none.
    pub fn is_empty(&self) -> bool {
        self.leaves == 0
    }

    /// The root over all.
    pub fn root(&self) -> Hash {
        let mut peaks = self.peaks.iter().rev();
        let Some(last) = peaks.next() else { return Sha256::digest([]).into() };
        peaks.fold(*last, |right, left| node(left, &right))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use sendtrail_schemas::secret::hex;

    /// As the RFC defines it.
    fn recursive(leaves: &[Hash]) -> Hash {
        match leaves {
            [] => Sha256::digest([]).into(),
            [only] => *only,
            many => {
                let split = many.len().next_power_of_two() / 2;
                node(&recursive(&many[..split]), &recursive(&many[split..]))
            }
        }
    }

    #[test]
    fn the_known_tree_of_certificate_transparency() {
        // Test vectors of RFC 6962's reference implementation.
        let inputs =
            ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"];
        let bytes = |text: &str| -> Vec<u8> {
            (0..text.len() / 2).map(|at| u8::from_str_radix(&text[2 * at..2 * at + 2], 16).unwrap()).collect()
        };
        let leaves: Vec<Hash> = inputs.iter().map(|input| leaf(&[&bytes(input)])).collect();
        assert_eq!(
            hex(&root(leaves[..1].to_vec())),
            "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d"
        );
        assert_eq!(
            hex(&root(leaves[..3].to_vec())),
            "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77"
        );
        assert_eq!(hex(&root(leaves)), "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328");
    }

    proptest! {
        #[test]
        fn every_size_is_as_the_rfc_says(count in 0usize..200) {
            let leaves: Vec<Hash> = (0..count).map(|at| leaf(&[&at.to_be_bytes()])).collect();
            prop_assert_eq!(root(leaves.clone()), recursive(&leaves));
            let mut tree = Tree::default();
            for leaf in &leaves {
                tree.push(*leaf);
                // Kept and read again at every step.
                tree = serde_json::from_str(&serde_json::to_string(&tree).unwrap()).unwrap();
            }
            prop_assert_eq!((tree.len(), tree.root()), (count as u64, recursive(&leaves)));
        }
    }
}
