package network

import (
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"regexp"
	"time"

	"github.com/roosthq/roost/internal/fault"
)

// DefaultPoolSize is how many slots are kept ready.
const DefaultPoolSize = 4

// Options configure a Manager. Installation and StateDir are required.
type Options struct {
	// Installation is the id that every name carries: four of a-z and 0-9.
	Installation string
	// StateDir holds network.json: the subnet, and what must be put back at Uninstall.
	StateDir string
	// Subnet is the IPv4 range that uplink addresses come from, two a slot. Empty: a free /18
	// of 10.128.0.0/9, chosen once and kept in StateDir.
	Subnet string
	// HostNS is a path of the network namespace to work from; empty: the current one.
	HostNS string
	// PoolSize is how many slots are kept ready; 0 is DefaultPoolSize, negative none.
	PoolSize int
	// PoolPort is the kind of port of the slots kept ready; empty is Tap. A slot of the other
	// kind is made when it is asked for.
	PoolPort PortKind
	// DeniedCIDRs are unreachable for guests, beyond Denied.
	DeniedCIDRs []string
	// Resolvers answer the guests' DNS, as IP or IP:port, tried in order. Empty: those of
	// /etc/resolv.conf, read again when it changes.
	Resolvers []string
	// DNSTimeout bounds one question to one resolver; 0 is 2 s.
	DNSTimeout time.Duration
	// Logger; nil is slog.Default.
	Logger *slog.Logger
}

var installationID = regexp.MustCompile(`^[a-z0-9]{4}$`)

// Validate names the first field that cannot be used.
func (o Options) Validate() error {
	if !installationID.MatchString(o.Installation) {
		return invalid("Installation", o.Installation, "must be four characters of a-z and 0-9")
	}
	if o.StateDir == "" {
		return invalid("StateDir", o.StateDir, "must be a directory")
	}
	if o.Subnet != "" {
		if _, err := parseSubnet(o.Subnet); err != nil {
			return err
		}
	}
	if o.PoolPort != "" && !o.PoolPort.valid() {
		return invalid("PoolPort", string(o.PoolPort), wrongKind)
	}
	if _, err := newDenyList(o.DeniedCIDRs); err != nil {
		return err
	}
	_, err := parseResolvers(o.Resolvers)
	return err
}

func (o Options) withDefaults() Options {
	if o.PoolSize == 0 {
		o.PoolSize = DefaultPoolSize
	}
	o.PoolSize = max(o.PoolSize, 0)
	if o.PoolPort == "" {
		o.PoolPort = Tap
	}
	if o.DNSTimeout <= 0 {
		o.DNSTimeout = 2 * time.Second
	}
	if o.Logger == nil {
		o.Logger = slog.Default()
	}
	o.Logger = o.Logger.With("component", "network", "installation", o.Installation)
	return o
}

func parseResolvers(texts []string) ([]string, error) {
	out := make([]string, 0, len(texts))
	for _, text := range texts {
		host, port, err := net.SplitHostPort(text)
		if err != nil {
			host, port = text, "53"
		}
		addr, err := netip.ParseAddrPort(net.JoinHostPort(host, port))
		if err != nil {
			return nil, invalid("Resolvers", text, "must be an IP or IP:port")
		}
		out = append(out, addr.String())
	}
	return out, nil
}

func invalid(field, value, cause string) error {
	return fault.New(fault.Invalid, "check", fmt.Sprintf("network option %s %q", field, value), cause)
}
