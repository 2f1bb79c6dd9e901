//! All short histories.
//!
//! Owns their enumeration. An alphabet enters; every sequence of one to so many of its letters leaves.

/// Every sequence of one to `longest` letters, the short ones first.
#[must_use]
pub fn histories<T: Copy>(alphabet: &[T], longest: usize) -> Vec<Vec<T>> {
    let mut all: Vec<Vec<T>> = Vec::new();
    let mut last: Vec<Vec<T>> = vec![Vec::new()];
    for _ in 0..longest {
        let longer = last.iter().flat_map(|history| {
            alphabet.iter().map(|letter| {
                let mut longer = history.clone();
                longer.push(*letter);
                longer
            })
        });
        last = longer.collect();
        all.extend(last.iter().cloned());
    }
    all
}

#[cfg(test)]
mod tests {
    use super::histories;

    #[test]
    fn every_sequence_is_there_once() {
        let all = histories(&[0, 1, 2], 3);
        assert_eq!(all.len(), 3 + 9 + 27);
        let different: std::collections::BTreeSet<_> = all.iter().collect();
        assert_eq!(different.len(), all.len());
        assert_eq!(all[0], [0]);
        assert_eq!(all[38], [2, 2, 2]);
    }
}
