package server

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	guestpb "github.com/roosthq/roost/api/gen/roost/guest/v1"
	"github.com/roosthq/roost/internal/guest/restore"
)

// exported is an answer to a request for the stream.
type exported struct {
	status  int
	stream  []byte
	trailer http.Header
}

// export asks with a control token.
func (g *guest) export(token string) exported {
	g.t.Helper()
	req, err := http.NewRequestWithContext(g.t.Context(), http.MethodGet, g.url+"/roost/export", nil)
	require.NoError(g.t, err)
	req.Header.Set(restore.TokenHeader, token)
	req.Header.Set("X-Access-Token", accessToken)
	res, err := g.http.Do(req)
	require.NoError(g.t, err)
	defer func() { _ = res.Body.Close() }()
	stream, err := io.ReadAll(res.Body)
	require.NoError(g.t, err)
	return exported{res.StatusCode, stream, res.Trailer}
}

func TestExportIsTheHostsAlone(t *testing.T) {
	t.Parallel()
	g := newGuest(t)
	for _, token := range []string{"", accessToken, controlToken, "wrong"} {
		require.Equal(t, http.StatusUnauthorized, g.export(token).status, "token %q", token)
	}
	require.Equal(t, http.StatusOK, g.export("control-token-1").status)
}

// TestExportWhileFrozen: it needs nobody who is.
func TestExportWhileFrozen(t *testing.T) {
	t.Parallel()
	g := newGuest(t)
	require.NoError(t, os.WriteFile(g.root+"/file", []byte("content"), 0o640))
	_, err := g.control.Freeze(t.Context(), controlled(&guestpb.FreezeRequest{}, "control-token-1"))
	require.NoError(t, err)
	res := g.export("control-token-1")
	files := tar.NewReader(bytes.NewReader(res.stream))
	var names []string
	for {
		h, err := files.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		require.NoError(t, err)
		names = append(names, h.Name)
	}
	require.Equal(t, "whole", res.trailer.Get("Roost-Export"))
	require.Equal(t, []string{"./", "etc/", "etc/hostname", "etc/hosts", "etc/machine-id", "file", "run/"}, names, "and no marker of this life")
}

// TestExportThatFails says so at once, or behind what it has sent.
func TestExportThatFails(t *testing.T) {
	t.Parallel()
	g := newGuest(t)
	tooDeep(t, g.root)
	require.Equal(t, http.StatusInternalServerError, g.export("control-token-1").status)
	require.NoError(t, os.WriteFile(g.root+"/before", bytes.Repeat([]byte("x"), 1<<20), 0o600))
	res := g.export("control-token-1")
	require.Equal(t, http.StatusOK, res.status)
	require.Empty(t, res.trailer.Get("Roost-Export"))
	require.Contains(t, res.trailer.Get("Roost-Export-Error"), "file name too long")
}

// tooDeep makes a path that no call takes as a whole.
func tooDeep(t *testing.T, root string) {
	t.Helper()
	at, err := unix.Open(root, unix.O_PATH|unix.O_DIRECTORY, 0)
	require.NoError(t, err)
	name := strings.Repeat("d", 250)
	for range 17 {
		require.NoError(t, unix.Mkdirat(at, name, 0o755))
		next, err := unix.Openat(at, name, unix.O_PATH|unix.O_DIRECTORY, 0)
		require.NoError(t, err)
		require.NoError(t, unix.Close(at))
		at = next
	}
	require.NoError(t, unix.Close(at))
}
