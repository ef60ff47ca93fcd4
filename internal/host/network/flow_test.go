package network

import (
	"context"
	"net"
	"net/netip"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
)

// flow is a TCP connection to an echoing server.
type flow struct{ net.Conn }

func stream(t *testing.T, ns *namespace, addr string) *flow {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	c, err := dialTCP(ctx, ns, netip.AddrPortFrom(netip.MustParseAddr(addr), webPort))
	require.NoError(t, err)
	t.Cleanup(func() { _ = c.Close() })
	_, err = c.Read(make([]byte, 128)) // the greeting
	require.NoError(t, err)
	return &flow{c}
}

func (f *flow) echo(wait time.Duration) error {
	_ = f.SetDeadline(time.Now().Add(wait))
	if _, err := f.Write([]byte("x")); err != nil {
		return err
	}
	_, err := f.Read(make([]byte, 1))
	return err
}

// sendFrom sends a datagram from an address of a namespace and waits for its echo.
func sendFrom(ns *namespace, from, to string) error {
	var c net.Conn
	err := ns.do(func() (err error) {
		d := net.Dialer{LocalAddr: &net.UDPAddr{IP: net.ParseIP(from)}}
		c, err = d.Dial("udp4", net.JoinHostPort(to, strconv.Itoa(udpPort)))
		return err
	})
	if err != nil {
		return err
	}
	defer func() { _ = c.Close() }()
	_ = c.SetDeadline(time.Now().Add(500 * time.Millisecond))
	if _, err := c.Write([]byte("ping")); err != nil {
		return err
	}
	_, err = c.Read(make([]byte, 8))
	return err
}

func routeVia(addr, gateway string) error {
	return netlink.RouteAdd(&netlink.Route{Dst: ipNet(netip.PrefixFrom(netip.MustParseAddr(addr), 32)), Gw: net.ParseIP(gateway)})
}

// pooled starts a manager and returns when its pool is full.
func pooled(t *testing.T, w *world, size int, kind PortKind) *Manager {
	t.Helper()
	opt := w.options()
	opt.PoolSize, opt.PoolPort = size, kind
	m, err := New(opt)
	require.NoError(t, err)
	full := make(chan struct{}, 1)
	m.filled = func() {
		select {
		case full <- struct{}{}:
		default:
		}
	}
	require.NoError(t, m.Start(t.Context()))
	t.Cleanup(func() { require.NoError(t, m.Uninstall(context.Background())) })
	select {
	case <-full:
	case <-time.After(30 * time.Second):
		t.Fatal("the pool was not filled")
	}
	return m
}
