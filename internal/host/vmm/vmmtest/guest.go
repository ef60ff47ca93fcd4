package vmmtest

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// guest is a connection to a guest's init.
type guest struct {
	conn net.Conn
	in   *bufio.Reader
}

// reach connects to the guest of m as soon as it listens.
func (m *machine) reach(t testing.TB) *guest {
	t.Helper()
	g, err := m.tryReach(answerTime)
	require.NoError(t, err, "the guest does not listen")
	t.Cleanup(func() { _ = g.conn.Close() })
	return g
}

func (m *machine) tryReach(most time.Duration) (*guest, error) {
	deadline := time.Now().Add(most)
	for {
		conn, err := m.net.dial(time.Second)
		if err == nil {
			return &guest{conn, bufio.NewReader(conn)}, nil
		}
		if time.Now().After(deadline) {
			return nil, err
		}
		time.Sleep(5 * time.Millisecond) // refused: the guest is up and init is not
	}
}

// tell sends a command that may have no answer.
func (g *guest) tell(t testing.TB, command string) {
	t.Helper()
	_, err := fmt.Fprintln(g.conn, command)
	require.NoError(t, err)
}

func (g *guest) ask(t testing.TB, command string) string {
	t.Helper()
	g.tell(t, command)
	return g.answer(t)
}

func (g *guest) answer(t testing.TB) string {
	t.Helper()
	require.NoError(t, g.conn.SetReadDeadline(time.Now().Add(answerTime)))
	line, err := g.in.ReadString('\n')
	require.NoError(t, err)
	line = strings.TrimSuffix(line, "\n")
	require.False(t, strings.HasPrefix(line, "error "), line)
	return line
}

// silent reports whether the guest leaves a command unanswered for d.
func (g *guest) silent(t testing.TB, command string, d time.Duration) bool {
	t.Helper()
	g.tell(t, command)
	require.NoError(t, g.conn.SetReadDeadline(time.Now().Add(d)))
	_, err := g.in.Peek(1)
	return err != nil && os.IsTimeout(err)
}
