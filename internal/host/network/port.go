package network

import (
	"errors"

	"github.com/vishvananda/netlink"
)

// PortKind is what a slot offers its sandbox.
type PortKind string

const (
	// Tap is a tap in the router namespace, for a VMM.
	Tap PortKind = "tap"
	// Veth is a veth end in a throwaway namespace, for a runtime with a network stack of its
	// own. Such a one (runsc) sends and receives through packet sockets, which no rule in the
	// namespace that it lives in sees; to the router namespace its packets come as any.
	Veth PortKind = "veth"
)

const wrongKind = "must be tap or veth"

func (k PortKind) valid() bool { return k == Tap || k == Veth }

var errNoPort = errors.New("the slot's port is gone")

// makePort makes the port in the namespace of the calling thread: a veth whose other end is
// in far, or a tap when there is none.
func makePort(nl *netlink.Handle, far *namespace) (netlink.Link, error) {
	var err error
	if far == nil {
		err = makeTap()
	} else {
		err = makeVeth(nl, far)
	}
	if err != nil {
		return nil, err
	}
	return nl.LinkByName(portName)
}

// findPort is the kind of the port in the namespace of the calling thread. The router's end
// tells it: what a runtime leaves of the other one is the runtime's affair.
func findPort() (PortKind, error) {
	link, err := netlink.LinkByName(portName)
	switch {
	case isNoLink(err):
		return "", errNoPort
	case err != nil:
		return "", err
	case link.Type() == "veth":
		return Veth, nil
	}
	return Tap, nil
}
