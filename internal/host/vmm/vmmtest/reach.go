package vmmtest

import (
	"os"
	"testing"
)

// GuestMAC is the hardware address of a guest behind a Line.
const GuestMAC = guestMAC

// Line is a tap, and the way to the test guest behind it, for tests of what stands on a VMM.
type Line struct{ m *machine }

// NewLine makes a tap in a namespace of its own; both go with the test.
func NewLine(t testing.TB) Line {
	t.Helper()
	return Line{&machine{net: newNetwork(t, false, 0)}}
}

// NewLineOf is a line whose tap a VMM opens by its name, under the uid.
func NewLineOf(t testing.TB, uid int) Line {
	t.Helper()
	return Line{&machine{net: newNetwork(t, true, uid)}}
}

// Tap is the line's; who reads it first must be the only VM. Nil when it is opened by name.
func (l Line) Tap() *os.File { return l.m.net.tap }

// Namespace is the path of the namespace of a tap that is opened by its name, TapName; "" of others.
func (l Line) Namespace() string { return l.m.net.path }

// TapName is of a tap that is opened by its name.
func (l Line) TapName() string { return l.m.net.tapName() }

// Ask connects to the guest, as soon as it listens, and returns its answer to a command.
func (l Line) Ask(t testing.TB, command string) string {
	t.Helper()
	g := l.m.reach(t)
	defer g.conn.Close()
	return g.ask(t, command)
}
