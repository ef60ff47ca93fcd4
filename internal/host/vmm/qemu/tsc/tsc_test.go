package tsc

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestRateAgreesWithMeasurement(t *testing.T) {
	got, err := KHz()
	require.NoError(t, err)
	require.InEpsilon(t, measure(), got, tolerance)
	for i, s := range sources() {
		khz, exact := s()
		t.Logf("source %d: %d kHz, exact %v", i, khz, exact)
	}
	t.Logf("chosen %d kHz, measured %d kHz", got, measure())
}

func TestChoose(t *testing.T) {
	t.Parallel()
	is := func(khz int, exact bool) source { return func() (int, bool) { return khz, exact } }
	const measured = 2_600_012
	require.Equal(t, 2_599_996, choose(measured, []source{is(2_599_996, true)}), "exact is kept")
	require.Equal(t, 2_600_000, choose(measured, []source{is(2_599_996, false)}), "measured per boot is rounded")
	require.Equal(t, 2_600_000, choose(measured, []source{is(0, true), is(1_200_000, true), is(2_599_996, false)}),
		"unknown and wrong ones are passed over")
	require.Equal(t, 2_600_000, choose(measured, nil), "nothing but the measurement")
}
