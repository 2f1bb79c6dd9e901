//! The search for a cycle among the held operations.
//!
//! Owns the graph of what must precede what. The held set enters, at most one finding leaves: a cycle, named.
//!
//! Operations are nodes, and so are the instants of completion, chained: an operation points to the instant of its completion,
//! and an instant to what was submitted next after it. So "completed before submitted" costs one edge an operation, not one a
//! pair. A third kind of edge leads at each sector from every held operation to the one that shows.

use super::judge::{Cover, Prefix};
use super::record::History;
use super::scan::Seen;
use super::verdict::{Findings, Sector};

struct Graph {
    operations: usize,
    starts: Vec<usize>,
    targets: Vec<u32>,
}

impl Graph {
    fn new(operations: usize, nodes: usize, mut edges: Vec<(u32, u32)>) -> Self {
        edges.sort_unstable();
        edges.dedup();
        let mut starts = vec![0; nodes + 1];
        for (from, _) in &edges {
            starts[*from as usize + 1] += 1;
        }
        for node in 0..nodes {
            starts[node + 1] += starts[node];
        }
        Self {
            operations,
            starts,
            targets: edges.into_iter().map(|(_, to)| to).collect(),
        }
    }

    /// The operations of some cycle.
    fn cycle(&self) -> Option<Vec<u32>> {
        let nodes = self.starts.len() - 1;
        let mut next: Vec<usize> = self.starts[..nodes].to_vec();
        let mut on_path = vec![false; nodes];
        let mut path: Vec<u32> = Vec::new();
        for root in 0..nodes {
            if next[root] != self.starts[root] {
                continue;
            }
            path.push(u32::try_from(root).expect("nodes are counted in u32"));
            on_path[root] = true;
            while let Some(node) = path.last().map(|node| *node as usize) {
                if next[node] == self.starts[node + 1] {
                    on_path[node] = false;
                    // Marks a node without edges as visited too: its range is empty and costs nothing again.
                    path.pop();
                    continue;
                }
                let to = self.targets[next[node]];
                next[node] += 1;
                if on_path[to as usize] {
                    let at = path.iter().position(|node| *node == to).unwrap_or(0);
                    let named = path[at..]
                        .iter()
                        .filter(|node| (**node as usize) < self.operations);
                    return Some(named.copied().collect());
                }
                if next[to as usize] == self.starts[to as usize] {
                    on_path[to as usize] = true;
                    path.push(to);
                }
            }
        }
        None
    }
}

/// Reports a cycle, if there is one.
pub(super) fn check(
    history: &History,
    seen: &[Vec<Seen>],
    cover: &Cover,
    prefix: &Prefix<'_>,
    findings: &mut Findings,
) {
    let operations = &history.operations;
    let mut edges = Vec::new();
    let mut done: Vec<(u64, u32)> = Vec::new();
    for (index, operation) in (0_u32..)
        .zip(operations)
        .filter(|(i, _)| prefix.held[*i as usize])
    {
        done.extend(operation.completed.map(|instant| (instant, index)));
    }
    done.sort_unstable();
    let first_instant = u32::try_from(operations.len()).expect("fewer than 2^32 operations");
    for (place, (_, index)) in (first_instant..).zip(&done) {
        edges.push((*index, place));
        if place > first_instant {
            edges.push((place - 1, place));
        }
    }
    for (index, operation) in (0_u32..)
        .zip(operations)
        .filter(|(i, _)| prefix.held[*i as usize])
    {
        let earlier = done.partition_point(|(instant, _)| *instant < operation.submitted);
        if earlier > 0 {
            let instant = u32::try_from(earlier - 1).expect("fewer than 2^32 operations");
            edges.push((first_instant + instant, index));
        }
    }
    let mut where_shown = Vec::new();
    for (at, seen, covering) in cover.each(seen) {
        let Some(last) = prefix.shown(seen, covering) else {
            continue;
        };
        for index in covering
            .iter()
            .filter(|i| prefix.held[**i as usize] && **i != last)
        {
            if where_shown
                .last()
                .is_none_or(|(edge, _): &((u32, u32), Sector)| *edge != (*index, last))
            {
                where_shown.push(((*index, last), at));
            }
        }
    }
    edges.extend(where_shown.iter().map(|(edge, _)| *edge));
    let graph = Graph::new(operations.len(), operations.len() + done.len(), edges);
    let Some(cycle) = graph.cycle() else { return };
    let at = where_shown
        .iter()
        .find(|((from, to), _)| cycle.contains(from) && cycle.contains(to));
    let at = at.map_or(
        Sector {
            volume: 0,
            sector: 0,
        },
        |(_, at)| *at,
    );
    findings.add("cycle", at, || {
        let names: Vec<_> = cycle
            .iter()
            .map(|i| operations[*i as usize].to_string())
            .collect();
        format!(
            "no order explains what shows: each before the next: {}",
            names.join(" < ")
        )
    });
}
