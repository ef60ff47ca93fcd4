package firecrackertest

import (
	"bufio"
	"bytes"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/roosthq/roost/internal/host/vmm"
)

// guestSocket lies in the jail, beside the API's.
const guestSocket = "guest.sock"

// listenToTests takes commands for the guest.
func (m *machine) listenToTests() error {
	l, err := net.Listen("unix", "/"+guestSocket)
	if err != nil {
		return err
	}
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go m.obeyTest(conn)
		}
	}()
	return nil
}

func (m *machine) obeyTest(conn net.Conn) {
	defer conn.Close()
	in := bufio.NewScanner(conn)
	for in.Scan() {
		verb, rest, _ := strings.Cut(in.Text(), " ")
		reply, err := m.obey(verb, rest)
		if err != nil {
			reply = "error " + err.Error()
		}
		_, _ = fmt.Fprintln(conn, reply)
	}
}

func (m *machine) obey(verb, rest string) (string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	number, text, _ := strings.Cut(rest, " ")
	n, _ := strconv.Atoi(number)
	switch verb {
	case "state":
		return m.state, nil
	case "rates":
		return fmt.Sprintf("%d %d", m.diskRate, m.netRate), nil
	case "print":
		say(rest)
	case "write":
		m.write(n, text)
	case "read":
		return string(bytes.TrimRight(m.memory[n*pageSize:(n+1)*pageSize], "\x00")), nil
	case "disk":
		if _, err := m.disk.WriteAt([]byte(text), int64(n)); err != nil {
			return "", err
		}
	case "size":
		size, err := m.disk.Seek(0, 2)
		return strconv.FormatInt(size, 10), err
	case "path":
		return m.path, nil
	case "fail":
		m.failing = rest
	case "make":
		_, err := os.Create(rest)
		return "ok", err
	case "exit":
		os.Exit(n)
	default:
		return "", fmt.Errorf("unknown command %s", verb)
	}
	return "ok", nil
}

// Guest commands the guest of a VM of the stand-in.
type Guest struct {
	conn net.Conn
	in   *bufio.Reader
}

// Reach connects to it.
func Reach(t testing.TB, h vmm.Handle) *Guest {
	t.Helper()
	dir, err := os.Open(filepath.Dir(h.Socket))
	require.NoError(t, err)
	defer dir.Close()
	conn, err := net.Dial("unix", fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), guestSocket))
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	return &Guest{conn, bufio.NewReader(conn)}
}

// Tell gives a command that may have no answer: "exit CODE".
func (g *Guest) Tell(t testing.TB, command string) {
	t.Helper()
	_, err := fmt.Fprintln(g.conn, command)
	require.NoError(t, err)
}

// Ask gives one: "print TEXT"; "write PAGE TEXT", "read PAGE" of memory; "disk OFFSET TEXT", "size";
// "path", "state", "rates" (what the VMM thinks); "fail write", "fail sync" or "fail silently", which
// is sync without an answer (the next save); "make FILE".
func (g *Guest) Ask(t testing.TB, command string) string {
	t.Helper()
	reply := g.Try(t, command)
	require.False(t, strings.HasPrefix(reply, "error "), reply)
	return reply
}

// Try is Ask whose answer may be an error.
func (g *Guest) Try(t testing.TB, command string) string {
	t.Helper()
	g.Tell(t, command)
	line, err := g.in.ReadString('\n')
	require.NoError(t, err)
	return strings.TrimSuffix(line, "\n")
}
