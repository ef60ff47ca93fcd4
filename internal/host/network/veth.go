package network

import (
	"fmt"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/roosthq/roost/internal/failpoint"
)

// makeFar makes the throwaway namespace of a veth port, without the veth.
func makeFar(path string) (*namespace, error) {
	err := doNew(path, func() error {
		if err := failpoint.Hit("network.make.far"); err != nil {
			return err
		}
		return farSysctls()
	})
	if err != nil {
		return nil, err
	}
	return openNamespace(path)
}

// farSysctls keep the namespace's own stack quiet. It sees every packet that the runtime does,
// also when the runtime has taken the addresses away and answers itself: were it a router, as
// a namespace is by birth where the machine is one, it would answer or send them back.
func farSysctls() error {
	for _, s := range [][2]string{
		{"ipv4/ip_forward", "0"},
		{"ipv6/conf/all/disable_ipv6", "1"},
		{"ipv6/conf/default/disable_ipv6", "1"},
		{"ipv6/conf/lo/disable_ipv6", "0"}, // ::1 leads nowhere else, and programs expect it
	} {
		if err := writeSysctl(s[0], s[1]); err != nil {
			return fmt.Errorf("set %s: %w", s[0], err)
		}
	}
	return nil
}

// makeVeth makes the port in the namespace of the calling thread, down, and sets up its other
// end in far as a guest's. The offloads stay on: what arrives there may be large, and its checksum
// not yet written, as on any veth. runsc understands that (it asks for vnet headers), and without
// it receives at a tenth of the speed: 90 MB/s instead of 455 to 860.
func makeVeth(nl *netlink.Handle, far *namespace) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.MTU, attrs.HardwareAddr = portName, MTU, GatewayMAC
	veth := &netlink.Veth{LinkAttrs: attrs, PeerName: guestName, PeerMTU: MTU, PeerHardwareAddr: GuestMAC}
	err := control(far.file, func(fd int) error {
		veth.PeerNamespace = netlink.NsFd(fd)
		return nl.LinkAdd(veth)
	})
	if err != nil {
		return fmt.Errorf("make link %s: %w", portName, err)
	}
	if err := failpoint.Hit("network.make.veth"); err != nil {
		return err
	}
	if err := far.do(setUpFar); err != nil {
		return fmt.Errorf("set up %s: %w", guestName, err)
	}
	return nil
}

// setUpFar gives the guest's end what a guest has, in the namespace of the calling thread. A
// runtime reads it from there and takes it over, the neighbour too: it need not ask for the
// gateway before its first packet.
func setUpFar() error {
	nl, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer nl.Close()
	lo, err := nl.LinkByName("lo")
	if err != nil {
		return err
	}
	if err := nl.LinkSetUp(lo); err != nil {
		return err
	}
	link, err := nl.LinkByName(guestName)
	if err != nil {
		return err
	}
	if err := configure(nl, link, GuestPrefix, nil); err != nil {
		return err
	}
	if err := nl.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: GatewayAddr.AsSlice()}); err != nil {
		return fmt.Errorf("add default route: %w", err)
	}
	return knowNeighbour(nl, link, GatewayAddr, GatewayMAC)
}
