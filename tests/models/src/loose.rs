//! Atomics that keep no order: whatever is asked for, they do the weakest.
//!
//! Owns wrappers with the interface of the standard library's, as far as the product uses it.

use loom::sync::atomic;
use loom::sync::atomic::Ordering::{self, Relaxed};

macro_rules! loose {
    ($($name:ident $value:ty),*) => {$(
        #[derive(Debug, Default)]
        pub(crate) struct $name(atomic::$name);

        #[allow(dead_code, reason = "one interface for all")]
        impl $name {
            pub(crate) fn new(value: $value) -> Self {
                Self(atomic::$name::new(value))
            }

            pub(crate) fn load(&self, _: Ordering) -> $value {
                self.0.load(Relaxed)
            }

            pub(crate) fn store(&self, value: $value, _: Ordering) {
                self.0.store(value, Relaxed);
            }

            pub(crate) fn swap(&self, value: $value, _: Ordering) -> $value {
                self.0.swap(value, Relaxed)
            }

            pub(crate) fn compare_exchange(
                &self,
                from: $value,
                to: $value,
                _: Ordering,
                _: Ordering,
            ) -> Result<$value, $value> {
                self.0.compare_exchange(from, to, Relaxed, Relaxed)
            }
        }
    )*};
}

loose!(AtomicBool bool, AtomicU8 u8, AtomicU32 u32, AtomicI32 i32, AtomicU64 u64);

impl AtomicU32 {
    pub(crate) fn fetch_sub(&self, value: u32, _: Ordering) -> u32 {
        self.0.fetch_sub(value, Relaxed)
    }
}

impl AtomicU64 {
    pub(crate) fn fetch_or(&self, value: u64, _: Ordering) -> u64 {
        self.0.fetch_or(value, Relaxed)
    }
}

pub(crate) const fn fence(_: Ordering) {}
