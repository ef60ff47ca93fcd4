// Package network gives each sandbox a slot: a router network namespace of its own that holds
// the sandbox's network policy and offers one port: a tap, or a veth.
//
// # Terms
//
// The host namespace is where the machine's uplink is. An installation is named by four
// characters; every name on the host carries them, and nothing with another installation's
// name is ever touched. A slot is numbered from 1:
//
//	namespace  roost-<inst>-<n>   the router, named under /run/netns
//	namespace  roost-<inst>-<n>p  the guest's end of a veth port, eth0, and nothing else
//	host link  r<inst>h<n>        veth end in the host namespace
//	up0, port0                    the other veth end and the port, inside the router
//	table      inet roost_<inst>  the host's rules for all slots of the installation
//
// A VMM is given an open Tap port, or opens it itself: from inside the router, where a tap lets
// in root and the one uid that Slot.TapFor named. The router's output rules leave such a process
// nothing but its own guest to talk to. A Veth port is for a runtime with a network stack of its own: it is
// started in the second namespace, takes address, route and neighbour off eth0, and from then
// on sends frames through a packet socket. No rule of the namespace that it lives in sees
// those. So that namespace is thrown away with the slot and has no rules: they are all in the
// router, where each packet of either kind of port comes in by port0 and crosses the forward
// hook. Once a runtime has started, nothing here relies on what is left of eth0.
//
// Inside every slot the addresses are the same (GuestAddr, GatewayAddr, and both MACs), so a
// sandbox restored into another slot finds its neighbour unchanged. Only the uplink differs:
// a /31 of the installation's subnet per slot, masqueraded once in the slot and again by the
// host.
//
// # States
//
//	(making) → pooled → Acquire → held → Release → (gone)
//	                    Adopt   ↗
//
// A slot is pooled or held with all its rules in the kernel; there is no moment at which a
// packet can pass without them. A slot serves one sandbox and is torn down after it, never
// reused. A held slot outlives the agent: Stop only closes the agent's DNS sockets, and a new
// Manager adopts it while traffic flows. The sandbox's id is written on the host link, so a
// number cannot be adopted for a sandbox that it was not given to.
//
// # Failure rules
//
// Acquire leaves nothing when it fails. Release is idempotent; when it fails the number stays
// taken and Release may be called again. Collect removes what no journal names and this
// Manager does not hold: what was half made by an agent that died, too. The namespaces of a
// slot end when nothing uses them: end the VM (which has the tap open) or the runtime (which
// lives in the second one) before Release.
//
// # What a guest reaches
//
// Everything but Denied, Options.DeniedCIDRs, the host's own addresses, and other slots. DNS
// is answered by the agent at GatewayAddr:53, through the host's resolvers, without the
// addresses that the guest could not reach anyway. IPv6 is off. Nothing reaches a guest
// except replies, and the agent through Slot.Dial.
//
// # Example
//
//	m, err := network.New(network.Options{Installation: "ab12", StateDir: dir})
//	err = m.Start(ctx)
//	slot, err := m.Acquire(ctx, sandboxID, network.Tap) // journal slot.Index()
//	tap, err := slot.Tap()                              // give it to the VMM
//	conn, err := slot.Dial(ctx, 49983)
//	err = m.Release(ctx, slot)
package network
