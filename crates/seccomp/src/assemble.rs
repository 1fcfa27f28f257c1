//! From jumps between labels to BPF's forward jumps by counts of instructions.
//!
//! A conditional jump of BPF reaches 255 instructions; a farther target is reached by way of an
//! unconditional jump right behind it.

use crate::profile::Instruction;

const LD_W_ABS: u16 = 0x20;
const ALU_AND_K: u16 = 0x54;
const JMP_JA: u16 = 0x05;
const RET_K: u16 = 0x06;

/// A comparison of the accumulator with a constant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compare {
    /// Equal.
    Equal,
    /// Greater, unsigned.
    Greater,
    /// Greater or equal, unsigned.
    GreaterOrEqual,
}

impl Compare {
    fn code(self) -> u16 {
        match self {
            Self::Equal => 0x15,
            Self::Greater => 0x25,
            Self::GreaterOrEqual => 0x35,
        }
    }
}

/// A place in the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Label(usize);

#[derive(Debug, Clone, Copy)]
enum Item {
    Plain(Instruction),
    Branch {
        compare: Compare,
        k: u32,
        holds: Label,
        fails: Label,
    },
    Goto(Label),
    Here(Label),
}

/// A program under construction. Labels are placed after all jumps to them.
#[derive(Debug, Default)]
pub(crate) struct Assembler {
    items: Vec<Item>,
    labels: usize,
}

/// Which targets of a branch need a long jump.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Long {
    holds: bool,
    fails: bool,
}

impl Long {
    fn instructions(self) -> usize {
        1 + usize::from(self.holds) + usize::from(self.fails)
    }
}

impl Assembler {
    /// A label that is not placed yet.
    pub(crate) fn label(&mut self) -> Label {
        self.labels += 1;
        Label(self.labels - 1)
    }

    /// Places a label at the next instruction.
    pub(crate) fn here(&mut self, label: Label) {
        self.items.push(Item::Here(label));
    }

    /// Loads the word at `offset` of struct seccomp_data.
    pub(crate) fn load(&mut self, offset: u32) {
        self.items
            .push(Item::Plain(Instruction::new(LD_W_ABS, 0, 0, offset)));
    }

    /// Clears the bits of the accumulator outside `mask`.
    pub(crate) fn and(&mut self, mask: u32) {
        self.items
            .push(Item::Plain(Instruction::new(ALU_AND_K, 0, 0, mask)));
    }

    /// Ends the filter with a verdict.
    pub(crate) fn ret(&mut self, value: u32) {
        self.items
            .push(Item::Plain(Instruction::new(RET_K, 0, 0, value)));
    }

    /// Goes to a label.
    pub(crate) fn goto(&mut self, label: Label) {
        self.items.push(Item::Goto(label));
    }

    /// Goes to `holds` or `fails` by a comparison with `k`.
    pub(crate) fn branch(&mut self, compare: Compare, k: u32, holds: Label, fails: Label) {
        self.items.push(Item::Branch {
            compare,
            k,
            holds,
            fails,
        });
    }

    /// The program.
    pub(crate) fn finish(self) -> Vec<Instruction> {
        let mut long = vec![Long::default(); self.items.len()];
        // Only ever from short to long, so this ends.
        loop {
            let places = self.places(&long);
            let wanted = self.measure(&places, &long);
            if wanted == long {
                return self.emit(&places, &long);
            }
            long = wanted;
        }
    }

    fn places(&self, long: &[Long]) -> Vec<usize> {
        let mut places = vec![usize::MAX; self.labels];
        let mut at = 0;
        for (item, long) in self.items.iter().zip(long) {
            match item {
                Item::Plain(_) | Item::Goto(_) => at += 1,
                Item::Branch { .. } => at += long.instructions(),
                Item::Here(label) => places[label.0] = at,
            }
        }
        places
    }

    fn measure(&self, places: &[usize], long: &[Long]) -> Vec<Long> {
        let mut at = 0;
        let mut wanted = Vec::with_capacity(long.len());
        for (item, long) in self.items.iter().zip(long) {
            let mut long = *long;
            if let Item::Branch { holds, fails, .. } = item {
                let is_far = |label: &Label| distance(at, places[label.0]) > 255;
                let next = at + long.instructions();
                long = Long {
                    holds: long.holds || is_far(holds),
                    fails: long.fails || is_far(fails),
                };
                at = next;
            } else if !matches!(item, Item::Here(_)) {
                at += 1;
            }
            wanted.push(long);
        }
        wanted
    }

    fn emit(&self, places: &[usize], long: &[Long]) -> Vec<Instruction> {
        let mut out = Vec::new();
        for (item, long) in self.items.iter().zip(long) {
            match *item {
                Item::Here(_) => {}
                Item::Plain(instruction) => out.push(instruction),
                Item::Goto(label) => out.push(jump(out.len(), places[label.0])),
                Item::Branch {
                    compare,
                    k,
                    holds,
                    fails,
                } => {
                    let at = out.len();
                    let (holds, fails) = (places[holds.0], places[fails.0]);
                    let jt = if long.holds { 0 } else { distance(at, holds) };
                    let jf = if long.fails {
                        usize::from(long.holds)
                    } else {
                        distance(at, fails)
                    };
                    out.push(Instruction::new(compare.code(), narrow(jt), narrow(jf), k));
                    if long.holds {
                        out.push(jump(out.len(), holds));
                    }
                    if long.fails {
                        out.push(jump(out.len(), fails));
                    }
                }
            }
        }
        out
    }
}

fn distance(at: usize, target: usize) -> usize {
    target
        .checked_sub(at + 1)
        .expect("labels are placed after all jumps to them")
}

fn narrow(distance: usize) -> u8 {
    u8::try_from(distance).expect("measured to be at most 255, else the jump is long")
}

fn jump(at: usize, target: usize) -> Instruction {
    let skip = u32::try_from(distance(at, target)).expect("a program is far below 2^32 long");
    Instruction::new(JMP_JA, 0, 0, skip)
}
