//! A slab with generations: stable small numbers for values that come and go.
//!
//! A key that outlives its value finds nothing, even when the place has been taken again.

/// Names a value: place and generation, as they travel through the kernel in `user_data`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Key {
    index: u32,
    generation: u32,
}

impl Key {
    /// Never a key of a slab.
    pub(super) const RESERVED: u64 = u64::MAX;

    pub(super) fn to_bits(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.index)
    }

    pub(super) fn from_bits(bits: u64) -> Self {
        let [g0, g1, g2, g3, i0, i1, i2, i3] = bits.to_be_bytes();
        Self {
            index: u32::from_be_bytes([i0, i1, i2, i3]),
            generation: u32::from_be_bytes([g0, g1, g2, g3]),
        }
    }
}

#[derive(Debug)]
struct Slot<T> {
    generation: u32,
    value: Option<T>,
}

/// Values by [`Key`].
#[derive(Debug)]
pub(super) struct Slab<T> {
    slots: Vec<Slot<T>>,
    free: Vec<u32>,
}

impl<T> Default for Slab<T> {
    fn default() -> Self {
        Self {
            slots: Vec::new(),
            free: Vec::new(),
        }
    }
}

impl<T> Slab<T> {
    pub(super) fn insert(&mut self, value: T) -> Key {
        let index = self.free.pop().unwrap_or_else(|| {
            let index = u32::try_from(self.slots.len());
            self.slots.push(Slot {
                generation: 0,
                value: None,
            });
            // Four billion values need more memory than there is.
            index.unwrap_or_else(|_| unreachable!("a slab outgrew its keys"))
        });
        let slot = &mut self.slots[index as usize];
        slot.value = Some(value);
        Key {
            index,
            generation: slot.generation,
        }
    }

    pub(super) fn get_mut(&mut self, key: Key) -> Option<&mut T> {
        let slot = self.slots.get_mut(key.index as usize)?;
        if slot.generation == key.generation {
            slot.value.as_mut()
        } else {
            None
        }
    }

    pub(super) fn contains(&self, key: Key) -> bool {
        let slot = self.slots.get(key.index as usize);
        slot.is_some_and(|slot| slot.generation == key.generation && slot.value.is_some())
    }

    pub(super) fn remove(&mut self, key: Key) -> Option<T> {
        let slot = self.slots.get_mut(key.index as usize)?;
        if slot.generation != key.generation {
            return None;
        }
        let value = slot.value.take()?;
        // The last generation of the last place would be `RESERVED`; it is never reached, because
        // such a slab has no room in memory.
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(key.index);
        Some(value)
    }

    /// Takes out any one value.
    pub(super) fn pop(&mut self) -> Option<T> {
        let at = self.slots.iter().position(|slot| slot.value.is_some())?;
        let key = Key {
            index: u32::try_from(at).ok()?,
            generation: self.slots[at].generation,
        };
        self.remove(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_finds_its_own_value_only() {
        let mut slab = Slab::default();
        let a = slab.insert("a");
        assert!(slab.contains(a));
        assert_eq!(slab.remove(a), Some("a"));
        let b = slab.insert("b");
        assert_eq!(a.index, b.index, "the place is used again");
        assert_eq!(slab.get_mut(a), None);
        assert_eq!(slab.remove(a), None);
        assert!(!slab.contains(a));
        assert_eq!(slab.get_mut(b), Some(&mut "b"));
        assert_eq!(slab.pop(), Some("b"));
        assert_eq!(slab.pop(), None);
    }

    #[test]
    fn keys_survive_the_way_through_the_kernel() {
        let mut slab = Slab::default();
        for round in 0..5_u32 {
            let keys: Vec<_> = (0..100_u32).map(|i| slab.insert(round * 100 + i)).collect();
            for (i, key) in (0..).zip(keys) {
                assert_ne!(key.to_bits(), Key::RESERVED);
                let back = Key::from_bits(key.to_bits());
                assert_eq!(back, key);
                assert_eq!(slab.remove(back), Some(round * 100 + i));
            }
        }
    }
}
