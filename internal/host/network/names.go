package network

import (
	"path/filepath"
	"strconv"
	"strings"
)

// MaxSlots is the highest slot number; numbers start at 1.
const MaxSlots = 4096

const (
	nsDir       = "/run/netns"
	uplinkName  = "up0"
	portName    = "port0"
	guestName   = "eth0" // a veth port's other end
	aliasPrefix = "roost:"
)

// names makes and parses the names of one installation. An id is always four characters, so
// what follows it is a whole number or not one of ours: no name is a prefix of another.
type names string

func (i names) namespace(n int) string     { return i.namespacePrefix() + strconv.Itoa(n) }
func (i names) namespacePath(n int) string { return filepath.Join(nsDir, i.namespace(n)) }
func (i names) portNamespace(n int) string { return i.namespace(n) + portSuffix }
func (i names) portPath(n int) string      { return filepath.Join(nsDir, i.portNamespace(n)) }
func (i names) link(n int) string          { return i.linkPrefix() + strconv.Itoa(n) }
func (i names) table() string              { return tablePrefix + string(i) }
func (i names) namespacePrefix() string    { return "roost-" + string(i) + "-" }
func (i names) linkPrefix() string         { return "r" + string(i) + "h" }

const (
	tablePrefix = "roost_"
	portSuffix  = "p"
)

// parseNamespace knows both namespaces of a slot.
func (i names) parseNamespace(name string) (int, bool) {
	return parseNumber(strings.TrimSuffix(name, portSuffix), i.namespacePrefix())
}

func (i names) parseLink(name string) (int, bool) { return parseNumber(name, i.linkPrefix()) }

// parseNumber accepts exactly what strconv.Itoa writes: no sign, no leading zero.
func parseNumber(name, prefix string) (int, bool) {
	digits, ok := strings.CutPrefix(name, prefix)
	if !ok {
		return 0, false
	}
	n, err := strconv.Atoi(digits)
	if err != nil || n < 1 || n > MaxSlots || strconv.Itoa(n) != digits {
		return 0, false
	}
	return n, true
}
