//! Who waits for which pieces, as data: it reads nothing, fetches nothing and answers nobody.
//!
//! ```text
//!  arrives --all its pieces are here----------------------------------> answered
//!     |                                                                    ^
//!     +-----> waits --each piece is fetched, or failed, once for all-------+
//! ```
//!
//! Answers go to numbers, and two requests may have the same one: one that a killed daemon had read, and one that this
//! has. Nobody can tell then which of both an answer reaches, so both wait until both can be answered, and fail together.
//! (The number of the former is kept from being given again, where nothing has it already; so this is rare.)

use std::{collections::HashMap, fmt::Debug, hash::Hash};

/// What became of the pieces that a request waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Outcome {
    /// All are readable.
    Here,
    /// One could not be had.
    Failed,
}

/// When a request is answered of which a piece could not be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Failing {
    /// When all its pieces are had or not: another may come with its number, and must not get its answer.
    Late,
    /// At once: its number never comes again.
    AtOnce,
}

/// To be answered now, as often as there are requests.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Answer<N, T> {
    /// To whom.
    pub(super) number: N,
    /// With what.
    pub(super) outcome: Outcome,
    /// What was kept of each request.
    pub(super) requests: Vec<T>,
}

/// What is to be done when a request has come.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Arrival<N, P, T> {
    /// It needs nothing.
    Answered(Answer<N, T>),
    /// It waits, and these pieces were not wanted by anybody before.
    Waits(Vec<P>),
}

/// All who wait. `N` is what an answer goes to, `P` names a piece, `T` is what is kept of a request.
#[derive(Debug)]
pub(super) struct Requests<N, P, T> {
    waiting: HashMap<N, Waiting<T>>,
    /// Once for each piece that a request waits for.
    wanted: HashMap<P, Vec<N>>,
}

#[derive(Debug)]
struct Waiting<T> {
    requests: Vec<T>,
    pieces_left: usize,
    outcome: Outcome,
    failing: Failing,
}

impl<N: Copy + Debug + Eq + Hash, P: Copy + Eq + Hash, T> Requests<N, P, T> {
    /// Of nobody.
    pub(super) fn new() -> Self {
        Self {
            waiting: HashMap::new(),
            wanted: HashMap::new(),
        }
    }

    /// How many wait.
    pub(super) fn len(&self) -> usize {
        self.waiting.values().map(|all| all.requests.len()).sum()
    }

    /// A request for pieces that are not here, or that fails for another reason.
    pub(super) fn arrive(
        &mut self,
        number: N,
        request: T,
        (outcome, failing): (Outcome, Failing),
        pieces: &[P],
    ) -> Arrival<N, P, T> {
        let waiting = self.waiting.entry(number).or_insert_with(|| Waiting {
            requests: Vec::new(),
            pieces_left: 0,
            outcome: Outcome::Here,
            failing,
        });
        waiting.requests.push(request);
        waiting.pieces_left += pieces.len();
        waiting.worsen(outcome);
        if waiting.is_over() {
            return Arrival::Answered(self.leave(number));
        }
        let mut new = Vec::new();
        for piece in pieces {
            let wanted = self.wanted.entry(*piece).or_default();
            if wanted.is_empty() {
                new.push(*piece);
            }
            wanted.push(number);
        }
        Arrival::Waits(new)
    }

    /// A piece that was wanted is here, or cannot be had: who can be answered now.
    pub(super) fn fetched(&mut self, piece: P, outcome: Outcome) -> Vec<Answer<N, T>> {
        let mut answers = Vec::new();
        for number in self.wanted.remove(&piece).unwrap_or_default() {
            // One that has failed at once waits for nothing more.
            let Some(waiting) = self.waiting.get_mut(&number) else {
                continue;
            };
            waiting.pieces_left -= 1;
            waiting.worsen(outcome);
            if waiting.is_over() {
                answers.push(self.leave(number));
            }
        }
        answers
    }

    fn leave(&mut self, number: N) -> Answer<N, T> {
        let waiting = self.waiting.remove(&number).expect("it waits");
        Answer {
            number,
            outcome: waiting.outcome,
            requests: waiting.requests,
        }
    }
}

impl<T> Waiting<T> {
    fn is_over(&self) -> bool {
        let has_failed = self.outcome == Outcome::Failed && self.failing == Failing::AtOnce;
        self.pieces_left == 0 || has_failed
    }

    fn worsen(&mut self, outcome: Outcome) {
        if outcome == Outcome::Failed {
            self.outcome = outcome;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{HashMap, HashSet};

    use proptest::prelude::*;

    use super::*;

    fn answer(number: i32, outcome: Outcome, requests: &[u32]) -> Answer<i32, u32> {
        Answer {
            number,
            outcome,
            requests: requests.to_vec(),
        }
    }

    #[test]
    fn who_needs_nothing_is_answered_at_once_and_others_when_all_their_pieces_are_fetched() {
        use Outcome::{Failed, Here};
        let mut requests = Requests::new();
        let arrived = requests.arrive(5, 0, (Here, Failing::Late), &[]);
        assert_eq!(arrived, Arrival::Answered(answer(5, Here, &[0])));
        let arrived = requests.arrive(5, 0, (Failed, Failing::Late), &[]);
        assert_eq!(arrived, Arrival::Answered(answer(5, Failed, &[0])));
        assert_eq!(
            requests.arrive(5, 1, (Here, Failing::Late), &['a', 'b']),
            Arrival::Waits(vec!['a', 'b'])
        );
        assert_eq!(
            requests.arrive(6, 2, (Here, Failing::Late), &['b', 'c']),
            Arrival::Waits(vec!['c'])
        );
        assert_eq!(requests.len(), 2);
        assert_eq!(requests.fetched('b', Here), []);
        assert_eq!(requests.fetched('a', Here), [answer(5, Here, &[1])]);
        assert_eq!(requests.fetched('c', Failed), [answer(6, Failed, &[2])]);
        assert_eq!(requests.fetched('c', Here), []);
    }

    #[test]
    fn two_with_one_number_are_answered_together() {
        use Outcome::Here;
        let mut requests = Requests::new();
        assert_eq!(
            requests.arrive(5, 1, (Here, Failing::Late), &['a']),
            Arrival::Waits(vec!['a'])
        );
        // It needs nothing, but an answer to its number may reach the other one.
        assert_eq!(
            requests.arrive(5, 2, (Here, Failing::Late), &[]),
            Arrival::Waits(vec![])
        );
        assert_eq!(
            requests.arrive(5, 3, (Here, Failing::Late), &['a']),
            Arrival::Waits(vec![])
        );
        assert_eq!(requests.fetched('a', Here), [answer(5, Here, &[1, 2, 3])]);
        assert_eq!(requests.len(), 0);
    }

    #[test]
    fn whose_number_never_comes_again_is_told_of_a_failure_at_once() {
        use Outcome::{Failed, Here};
        let mut requests = Requests::new();
        for number in [5, 6] {
            let how = (Here, Failing::AtOnce);
            requests.arrive(number, 1, how, &['a', 'b']);
        }
        requests.arrive(7, 2, (Here, Failing::Late), &['a', 'b']);
        let told = [answer(5, Failed, &[1]), answer(6, Failed, &[1])];
        assert_eq!(requests.fetched('a', Failed), told);
        assert_eq!(requests.len(), 1);
        assert_eq!(requests.fetched('b', Here), [answer(7, Failed, &[2])]);
        assert_eq!(requests.len(), 0);
    }

    #[derive(Debug, Clone)]
    enum Step {
        Arrive(i32, Vec<u8>),
        Fetch(u8, bool),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let arrive = (0..4_i32, prop::collection::hash_set(0..6_u8, 0..4))
            .prop_map(|(number, pieces)| Step::Arrive(number, pieces.into_iter().collect()));
        let fetch = (0..6_u8, any::<bool>()).prop_map(|(piece, works)| Step::Fetch(piece, works));
        prop::collection::vec(prop_oneof![arrive, fetch], 0..60)
    }

    proptest! {
        /// Whatever comes in whatever order: each request is answered once, not before its pieces were fetched after it
        /// came, and told of a failure when one of them failed.
        #[test]
        fn nobody_is_answered_too_early_or_twice_or_never(steps in steps()) {
            let mut requests = Requests::new();
            let mut open: HashMap<u32, (HashSet<u8>, bool)> = HashMap::new();
            let mut next = 0;
            let fetch_all = (0..6).map(|piece| Step::Fetch(piece, true));
            for step in steps.into_iter().chain(fetch_all) {
                let answers = match step {
                    Step::Arrive(number, pieces) => {
                        next += 1;
                        open.insert(next, (pieces.iter().copied().collect(), false));
                        match requests.arrive(number, next, (Outcome::Here, Failing::Late), &pieces) {
                            Arrival::Answered(answer) => vec![answer],
                            Arrival::Waits(_) => Vec::new(),
                        }
                    }
                    Step::Fetch(piece, works) => {
                        for (wanted, has_failed) in open.values_mut() {
                            *has_failed |= wanted.remove(&piece) && !works;
                        }
                        let outcome = if works { Outcome::Here } else { Outcome::Failed };
                        requests.fetched(piece, outcome)
                    }
                };
                for answer in answers {
                    for request in answer.requests {
                        let (wanted, has_failed) = open.remove(&request).expect("once");
                        prop_assert!(wanted.is_empty());
                        prop_assert!(!has_failed || answer.outcome == Outcome::Failed);
                    }
                }
            }
            prop_assert!(open.is_empty());
            prop_assert_eq!(requests.len(), 0);
        }
    }
}
