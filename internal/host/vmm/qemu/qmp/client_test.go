package qmp

import (
	"bufio"
	"context"
	"encoding/json"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/roosthq/roost/internal/fault"
)

// pair is a client's connection and QEMU's end of it.
func pair(t *testing.T) (*net.UnixConn, net.Conn) {
	t.Helper()
	addr := &net.UnixAddr{Name: filepath.Join(t.TempDir(), "s"), Net: "unix"}
	l, err := net.ListenUnix("unix", addr)
	require.NoError(t, err)
	defer l.Close()
	c, err := net.DialUnix("unix", nil, addr)
	require.NoError(t, err)
	s, err := l.Accept()
	require.NoError(t, err)
	t.Cleanup(func() { _ = s.Close() })
	return c, s
}

// serve answers each command by reply, which gets its name and id.
func serve(conn net.Conn, reply func(name string, id uint64) string) {
	_, _ = conn.Write([]byte(`{"QMP":{"version":{}}}` + "\n"))
	in := bufio.NewScanner(conn)
	for in.Scan() {
		var c struct {
			Execute string
			ID      uint64
		}
		if json.Unmarshal(in.Bytes(), &c) != nil {
			return
		}
		if _, err := conn.Write([]byte(reply(c.Execute, c.ID))); err != nil {
			return
		}
	}
}

func answer(id uint64, body string) string {
	raw, _ := json.Marshal(id)
	return `{"id":` + string(raw) + `,` + body + "}\n"
}

func open(t *testing.T, onEvent func(Event), reply func(name string, id uint64) string) *Client {
	t.Helper()
	c, s := pair(t)
	go serve(s, func(name string, id uint64) string {
		if name == "qmp_capabilities" {
			return answer(id, `"return":{}`)
		}
		return reply(name, id)
	})
	client, err := Open(t.Context(), c, onEvent)
	require.NoError(t, err)
	t.Cleanup(client.Close)
	return client
}

func TestAnswersErrorsAndEvents(t *testing.T) {
	t.Parallel()
	events := make(chan Event, 1)
	c := open(t, func(e Event) { events <- e }, func(name string, id uint64) string {
		switch name {
		case "query-status":
			return answer(99, `"return":{"status":"somebody else's"}`) +
				`{"event":"STOP","data":{"a":1}}` + "\n" + answer(id, `"return":{"status":"paused"}`)
		default:
			return answer(id, `"error":{"class":"DeviceNotFound","desc":"no such thing"}`)
		}
	})
	state, err := c.Status(t.Context())
	require.NoError(t, err)
	require.Equal(t, "paused", state)
	require.Equal(t, "STOP", (<-events).Name)
	err = c.Stop(t.Context())
	require.True(t, fault.Is(err, fault.NotFound), "%v", err)
	require.EqualError(t, err, "run qmp stop: no such thing")
}

func TestDeadline(t *testing.T) {
	t.Parallel()
	c := open(t, func(Event) {}, func(string, uint64) string { return "\n{}\n"[1:] })
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	require.True(t, fault.Is(c.Stop(ctx), fault.DeadlineExceeded))
}

func TestHostilePeers(t *testing.T) {
	t.Parallel()
	for name, says := range map[string]string{
		"endless line": strings.Repeat("x", MaxLine+4096),
		"not JSON":     "hello\n",
		"wrong types":  `{"id":"x","return":[]}` + "\n",
	} {
		c := open(t, func(Event) {}, func(string, uint64) string { return says })
		err := c.Stop(t.Context())
		require.True(t, fault.Is(err, fault.Unavailable), "%s: %v", name, err)
		<-c.Done()
		require.True(t, fault.Is(c.Stop(t.Context()), fault.Unavailable), "later commands fail at once")
	}
}

func TestPeerGoes(t *testing.T) {
	t.Parallel()
	c, s := pair(t)
	require.NoError(t, s.Close())
	_, err := Open(t.Context(), c, func(Event) {})
	require.True(t, fault.Is(err, fault.Unavailable), "%v", err)
}
