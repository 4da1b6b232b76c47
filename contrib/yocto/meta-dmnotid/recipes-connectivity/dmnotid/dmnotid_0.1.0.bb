# nooelint: oelint.var.mandatoryvar.HOMEPAGE - dmnotid has none
SUMMARY = "OMA DM 2.0 notification receiver"
DESCRIPTION = "Receives DM Notifications as WAP Push on UDP 2948, verifies them, keeps them on disk and runs a hook, which \
               starts the DM session."
SECTION = "net"
LICENSE = "MIT"
LIC_FILES_CHKSUM = "file://LICENSE;md5=fab7df3c421c2d7c74ec53541a04b3ea"

# The directory of the source distribution. "make dist" writes it to dist/ of the checkout that contains this layer.
DMNOTID_DIST ?= "${THISDIR}/../../../../../dist"
SRC_URI = "file://${DMNOTID_DIST}/dmnotid-${PV}.tar.gz"

inherit features_check python_setuptools_build_meta systemd useradd

REQUIRED_DISTRO_FEATURES = "systemd"

# Nothing is enabled, because the example configuration names no real server. An append with a configuration of its own sets
# this to "enable" (contrib/yocto/README.md).
SYSTEMD_SERVICE:${PN} = "dmnotid.service dmnotid.socket"
SYSTEMD_AUTO_ENABLE = "disable"

# The users of systemd/dmnotid.sysusers, made while the image is built, because its root may be read-only.
USERADD_PACKAGES = "${PN}"
GROUPADD_PARAM:${PN} = "--system dmnotid-doors"
USERADD_PARAM:${PN} = "--system --home-dir ${localstatedir}/lib/dmnotid --no-create-home --shell /sbin/nologin --user-group dmnotid; \
                       --system --home-dir ${localstatedir}/lib/dmnotid-session --no-create-home --shell /sbin/nologin --user-group dmnotid-session"

do_install:append() {
    install -d ${D}${systemd_system_unitdir} ${D}${datadir}/dmnotid ${D}${sysconfdir}/dmnotid
    install -m 0644 ${S}/systemd/dmnotid.service ${S}/systemd/dmnotid-metrics*.service ${S}/systemd/dmnotid-session*.service \
        ${S}/systemd/dmnotid*.socket ${S}/systemd/dmnotid*.timer ${D}${systemd_system_unitdir}
    install -m 0644 ${S}/systemd/handoff.conf ${S}/systemd/restart-steps.conf ${D}${datadir}/dmnotid
    install -m 0644 ${S}/config/dmnotid.schema.json ${D}${datadir}/dmnotid
    install -d ${D}${sysconfdir}/systemd/system/dmnotid.service.d ${D}${nonarch_libdir}/systemd/catalog
    ln -s ${datadir}/dmnotid/restart-steps.conf ${D}${sysconfdir}/systemd/system/dmnotid.service.d
    install -m 0644 ${S}/systemd/dmnotid.catalog ${D}${nonarch_libdir}/systemd/catalog
    install -m 0644 ${S}/config/dmnotid.yaml ${D}${sysconfdir}/dmnotid
    sed -i 's,schema=dmnotid.schema.json,schema=${datadir}/dmnotid/dmnotid.schema.json,' \
        ${D}${sysconfdir}/dmnotid/dmnotid.yaml
}

FILES:${PN} += "${systemd_system_unitdir} ${nonarch_libdir}/systemd/catalog"
CONFFILES:${PN} = "${sysconfdir}/dmnotid/dmnotid.yaml"

# Without uvloop, which is optional: dmnotid then runs on the event loop of asyncio.
RDEPENDS:${PN} += "\
    python3-asyncio \
    python3-core \
    python3-crypt \
    python3-datetime \
    python3-difflib \
    python3-fcntl \
    python3-io \
    python3-json \
    python3-logging \
    python3-math \
    python3-netclient \
    python3-pyyaml \
    python3-shell \
    python3-sqlite3 \
    python3-structlog \
    python3-threading \
"
