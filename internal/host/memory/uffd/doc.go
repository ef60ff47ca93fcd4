// Package uffd serves the memory of a restored VM page by page, when it is asked for: the template
// with the layers of a capture over it, without writing any of it into the VM beforehand. It speaks
// Firecracker's protocol over userfaultfd(2).
//
// # Terms
//
// The page server, or pager, is a process of its own per VM (this program, started again), under the
// VM's uid, in a session of its own, with nothing but the descriptors it needs. It outlives the
// agent. Its state is a file in the VM's directory that it maps: where the VM's memory is, which pages the
// VM gave up, the messages in hand, what it counted.
//
// The VMM makes anonymous memory and a userfaultfd for it, connects to the pager's socket and sends a
// list of regions with the descriptor (SCM_RIGHTS). From then on a thread that touches a missing page waits
// until the pager has put it. The VMM keeps a copy of the descriptor; so without a pager
// its threads wait, and never read zeros.
//
// The working set of a restore are the pages that the VM needed first, in order. It is recorded
// when there is none (SaveWorkingSet) and otherwise put in bulk, from the moment of the handshake on.
//
// # States
//
//	Start → listening → (handshake) → serving → VM gone (Err: nil)
//	                                     ↓ killed            ↓ Stop
//	                                  Reattach → serving    gone
//
// Supervise does the middle line by itself.
//
// # Failure rules
//
// A wrong byte is never served. A page of a layer is compared with its hash each time; the template's
// file was verified as a whole. Damage ends the pager with fault.DataLoss, and the VM must be
// ended. A page that the VM gave up (UFFD_EVENT_REMOVE) is zero from then on, in later pagers too:
// messages are read into the state file, so that one that was read is obeyed by the next pager when this
// one is killed in between. A pager that dies before it has written down the handshake cannot be
// replaced, and Reattach says so. What the VMM sends is checked; nonsense ends the pager with
// fault.Invalid. A client that never connects is ended by Stop. Whoever restores a VM must watch
// Exited meanwhile: a VMM whose pager is dead hangs, and so does the request that it is in.
//
// # Example
//
//	p, err := uffd.Start(ctx, o)                   // then restore with vmm.Memory.Pager = p.Handle().Socket()
//	go uffd.Supervise(ctx, p, o, uffd.VMM{PID: pid, StartTime: start}, journal, killVM)
//	err = uffd.SaveWorkingSet(o.Dir, "/t/base.set")  // o.WorkingSet of later starts
//	p, err = uffd.Adopt(handle)                    // after an agent restart; NotFound: Reattach
//	err = p.Stop(ctx)                              // after the VM is gone
package uffd
