package qemu

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/roosthq/roost/internal/host/vmm/qemu/qmp"
)

// A switch whose answer was lost has happened when QEMU says that the disk is on the new node.
func TestCoverIsSeen(t *testing.T) {
	t.Parallel()
	for top, happened := range map[string]bool{"d4": true, "d3": false} {
		vm := &VM{qmp: fakeQEMU(t, map[string]string{
			"qmp_capabilities":  `"return":{}`,
			"blockdev-snapshot": `"error":{"class":"GenericError","desc":"too late"}`,
			"query-block":       fmt.Sprintf(`"return":[{"qdev":%q,"inserted":{"node-name":%q}}]`, diskID, top),
		})}
		err := vm.cover(t.Context(), "d3", "d4")
		if happened {
			require.NoError(t, err)
		} else {
			require.ErrorContains(t, err, "too late")
		}
	}
}

// fakeQEMU answers each command as the map says.
func fakeQEMU(t *testing.T, answers map[string]string) *qmp.Client {
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
	go answerAll(s, answers)
	client, err := qmp.Open(t.Context(), c, func(qmp.Event) {})
	require.NoError(t, err)
	t.Cleanup(client.Close)
	return client
}

func answerAll(conn net.Conn, answers map[string]string) {
	in := bufio.NewScanner(conn)
	for in.Scan() {
		var c struct {
			Execute string
			ID      uint64
		}
		if json.Unmarshal(in.Bytes(), &c) != nil {
			return
		}
		if _, err := fmt.Fprintf(conn, `{"id":%d,%s}`+"\n", c.ID, answers[c.Execute]); err != nil {
			return
		}
	}
}
