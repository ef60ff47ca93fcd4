package guestclient

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/roosthq/roost/internal/fault"
)

// exporting is a client of a guest that answers an export so.
func exporting(t *testing.T, answer http.HandlerFunc) *Client {
	t.Helper()
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+exportPath, func(w http.ResponseWriter, r *http.Request) {
		require.Equal(t, "token", r.Header.Get(ControlHeader))
		w.Header().Set("Trailer", wholeTrailer+", "+errorTrailer)
		answer(w, r)
	})
	s := httptest.NewServer(mux)
	t.Cleanup(s.Close)
	c := New(func(ctx context.Context, _ int) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, "tcp", s.Listener.Addr().String())
	}, "token")
	t.Cleanup(c.Close)
	return c
}

func TestExportIsWholeOrFails(t *testing.T) {
	t.Parallel()
	const content = "the stream"
	for name, c := range map[string]struct {
		answer http.HandlerFunc
		say    string
	}{
		"whole": {func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, content)
			w.Header().Set(wholeTrailer, "whole")
		}, ""},
		"no trailer": {func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, content)
		}, "the guest did not say that this was all"},
		"failed": {func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, content)
			w.Header().Set(errorTrailer, `"read etc/\xff: input/output error"`)
		}, "read etc/\xff: input/output error"},
		"cut": {func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, content)
			_ = http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		}, "unexpected EOF"},
	} {
		got, err := exporting(t, c.answer).Export(t.Context())
		require.NoError(t, err, name)
		read, err := io.ReadAll(got)
		require.Equal(t, content, string(read), name)
		if c.say == "" {
			require.NoError(t, err, name)
		} else {
			require.ErrorContains(t, err, "ended early", name)
			require.ErrorContains(t, err, c.say, name)
			require.Equal(t, fault.Unavailable, fault.KindOf(err), name)
		}
		require.NoError(t, got.Close())
	}
}

func TestExportRefused(t *testing.T) {
	t.Parallel()
	for status, kind := range map[int]fault.Kind{404: fault.FailedPrecondition, 401: fault.FailedPrecondition, 500: fault.Internal} {
		_, err := exporting(t, func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(status)
			_, _ = io.WriteString(w, `{"message":"why not","code":1}`)
		}).Export(t.Context())
		require.Equal(t, kind, fault.KindOf(err), "%v", err)
		require.ErrorContains(t, err, "why not")
		require.Equal(t, kind == fault.FailedPrecondition, strings.Contains(fault.HintOf(err), "--disk-only"))
	}
}

func TestExportCancelled(t *testing.T) {
	t.Parallel()
	c := exporting(t, func(w http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(w).Flush()
		<-r.Context().Done()
	})
	ctx, cancel := context.WithCancel(t.Context())
	got, err := c.Export(ctx)
	require.NoError(t, err)
	cancel()
	_, err = io.ReadAll(got)
	require.Equal(t, fault.Canceled, fault.KindOf(err), "%v", err)
	require.NoError(t, got.Close())
	_, err = c.Export(ctx)
	require.Equal(t, fault.Canceled, fault.KindOf(err), "%v", err)
	c.Close()
	_, err = c.Export(t.Context())
	require.Equal(t, fault.Unavailable, fault.KindOf(err), "%v", err)
}
