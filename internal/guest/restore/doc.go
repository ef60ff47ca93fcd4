// Package restore serves roost.guest.v1.Control: what the host asks of a guest around a
// capture, and the handshake that makes a restored copy a sandbox of its own.
//
// # States
//
//	fresh (frozen) → Restore → restored (frozen) → Thaw → running ⇄ Freeze/Thaw
//	                    ↑______________________________________|  Restore of another life
//
// A life is a sandbox id and a generation. Restore of the current life repeats the answer and
// changes nothing but the clock, and that only before the Thaw; of an older generation of the same sandbox it is refused; of anything else
// it begins a new life: first the old access token dies, connections and waiting starts of the
// old life are dropped (the other side of them exists no more), then clock, random source and
// names are made true, and last the new tokens begin to work. A Restore that fails half way
// leaves the guest frozen and shut, and is repeated as a whole.
//
// The superseded control token may repeat the Restore that replaced it, until the Thaw: the
// answer may have been lost. A Freeze that fails leaves nothing frozen that was not before.
package restore
