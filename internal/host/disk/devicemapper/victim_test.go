//go:build !failpoints

package devicemapper_test

const victimEnv = "DEVICEMAPPER_TEST_VICTIM"

func victim() {}
