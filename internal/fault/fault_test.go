package fault

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"testing"

	"connectrpc.com/connect"
	"github.com/stretchr/testify/require"
	"google.golang.org/protobuf/types/known/emptypb"
)

var kinds = []Kind{Canceled, Invalid, DeadlineExceeded, NotFound, AlreadyExists, PermissionDenied,
	ResourceExhausted, FailedPrecondition, Aborted, Unimplemented, Internal, Unavailable, Unauthenticated}

func TestTextSaysOperationObjectAndCause(t *testing.T) {
	t.Parallel()
	err := Wrap(New(NotFound, "open", "cow file sb1.cow", "no such file"), "resume", "sandbox x")
	require.EqualError(t, err, "resume sandbox x: open cow file sb1.cow: no such file")
	require.EqualError(t, &Error{Op: "do", Object: "it"}, "do it")
	require.EqualError(t, &Error{Err: errors.New("why")}, "why")
	require.NoError(t, Wrap(nil, "a", "b"))
}

func TestKindOf(t *testing.T) {
	t.Parallel()
	plain := errors.New("plain")
	for _, c := range []struct {
		err  error
		want Kind
	}{
		{plain, Internal},
		{context.Canceled, Canceled},
		{fmt.Errorf("x: %w", context.DeadlineExceeded), DeadlineExceeded},
		{Wrap(context.Canceled, "wait for", "gate"), Canceled},
		{fmt.Errorf("x: %w", New(NotFound, "", "", "c")), NotFound},
		{errors.Join(plain, New(Aborted, "", "", "c")), Aborted},
		{connect.NewError(connect.CodeUnavailable, plain), Unavailable},
		{&Error{Err: New(NotFound, "", "", "c")}, NotFound},
		{&Error{Err: plain}, Internal},
		{&Error{}, Internal},
	} {
		require.Equal(t, c.want, KindOf(c.err), "%v", c.err)
		require.True(t, Is(c.err, c.want))
	}
	require.False(t, Is(nil, Internal))
}

func TestHintOf(t *testing.T) {
	t.Parallel()
	hinted := New(NotFound, "", "", "c").WithHint("do this")
	require.Equal(t, "do this", HintOf(hinted))
	require.Equal(t, "do this", HintOf(Wrap(fmt.Errorf("x: %w", hinted), "a", "b")))
	require.Equal(t, "do this", HintOf(errors.Join(New(Internal, "", "", "no hint"), hinted)), "of any of the joined")
	require.Equal(t, "do this", HintOf(fmt.Errorf("%w (%w)", errors.New("x"), hinted)))
	require.Equal(t, "nearer", HintOf((&Error{Err: hinted}).WithHint("nearer")))
	require.Empty(t, HintOf(errors.New("x")))
	require.Empty(t, HintOf(nil))
	require.Empty(t, HintOf(&Error{}))
}

// Over a real connection each kind arrives with its message and hint, through two hops.
func TestOverTheWire(t *testing.T) {
	t.Parallel()
	const procedure = "/test.Service/Do"
	serve := func(f func(context.Context) error) string {
		s := httptest.NewServer(connect.NewUnaryHandler(procedure, func(ctx context.Context, _ *connect.Request[emptypb.Empty]) (*connect.Response[emptypb.Empty], error) {
			return nil, ToConnect(f(ctx))
		}))
		t.Cleanup(s.Close)
		return s.URL
	}
	call := func(ctx context.Context, url string) error {
		_, err := connect.NewClient[emptypb.Empty, emptypb.Empty](http.DefaultClient, url+procedure).
			CallUnary(ctx, connect.NewRequest(&emptypb.Empty{}))
		return FromConnect(err)
	}
	for _, kind := range kinds {
		guest := serve(func(context.Context) error { return New(kind, "make", "folder /x", "ünlucky").WithHint("try /y") })
		agent := serve(func(ctx context.Context) error { return Wrap(call(ctx, guest), "ask", "guest") })
		err := Wrap(call(t.Context(), agent), "exec in", "sandbox a")
		require.Equal(t, kind, KindOf(err))
		require.EqualError(t, err, "exec in sandbox a: ask guest: make folder /x: ünlucky")
		require.Equal(t, "try /y", HintOf(err))
	}
	url := serve(func(context.Context) error { return errors.New("plain") })
	require.Equal(t, Internal, KindOf(call(t.Context(), url)))
}

func TestFromConnectKeepsWhatNeverWasOnTheWire(t *testing.T) {
	t.Parallel()
	plain := errors.New("plain")
	require.Equal(t, plain, FromConnect(plain))
	require.NoError(t, FromConnect(nil))
	require.NoError(t, ToConnect(nil))
	require.Equal(t, "x: y", Message(fmt.Errorf("x: %w", connect.NewError(connect.CodeAborted, errors.New("y")))), "without the code")
}
